#pragma once

#include "backend/ops.h"

namespace fieldprint::backend::avx512 {

void attention_preface(const AttentionArgs& args, std::int64_t begin, std::int64_t end);
void attention_context(const AttentionArgs& args, std::int64_t begin, std::int64_t end);

}  // namespace fieldprint::backend::avx512
