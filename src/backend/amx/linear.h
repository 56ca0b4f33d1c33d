#pragma once

#include "backend/ops.h"

namespace fieldprint::backend::amx {

void linear(const LinearArgs& args, std::int64_t begin, std::int64_t end);

}  // namespace fieldprint::backend::amx
