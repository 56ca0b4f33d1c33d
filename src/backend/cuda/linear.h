#pragma once

#include "backend/cuda/device.h"
#include "backend/ops.h"

/// Linear layers and embedding over repacked weights (repack.h). Pointers are device pointers; activations
/// `q` and weights are 16-byte aligned. Both enqueue and return.
namespace fieldprint::backend::cuda {

void linear(const LinearArgs& args, Stream stream);

void embed(const EmbedArgs& args, std::int32_t tokens, Stream stream);

}  // namespace fieldprint::backend::cuda
