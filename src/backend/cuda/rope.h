#pragma once

#include "backend/cuda/device.h"
#include "backend/ops.h"

namespace fieldprint::backend::cuda {

/// Head sizes that are a multiple of 16, up to 256. Pointers are device pointers, those to floats and to `q`
/// aligned to 16 bytes.
void rope_append(const RopeAppendArgs& args, std::int32_t tokens, Stream stream);

}  // namespace fieldprint::backend::cuda
