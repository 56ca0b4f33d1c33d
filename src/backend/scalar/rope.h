#pragma once

#include "backend/ops.h"

namespace fieldprint::backend::scalar {

void rope_append(const RopeAppendArgs& args, std::int64_t begin, std::int64_t end);

}  // namespace fieldprint::backend::scalar
