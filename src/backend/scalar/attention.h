#pragma once

#include "backend/ops.h"

namespace fieldprint::backend::scalar {

void attention_preface(const AttentionArgs& args, std::int64_t begin, std::int64_t end);
void attention_context(const AttentionArgs& args, std::int64_t begin, std::int64_t end);

}  // namespace fieldprint::backend::scalar
