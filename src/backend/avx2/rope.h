#pragma once

#include "backend/ops.h"

namespace fieldprint::backend::avx2 {

void rope_append(const RopeAppendArgs& args, std::int64_t begin, std::int64_t end);

}  // namespace fieldprint::backend::avx2
