#pragma once

#include "backend/ops.h"

namespace fieldprint::backend::avx2 {

void linear(const LinearArgs& args, std::int64_t begin, std::int64_t end);
void embed(const EmbedArgs& args, std::int64_t begin, std::int64_t end);

}  // namespace fieldprint::backend::avx2
