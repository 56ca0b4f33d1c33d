#pragma once

#include "backend/cuda/linear.h"

/// The kernels among which linear() chooses; each computes the whole operation for its weight format and any
/// shape.
namespace fieldprint::backend::cuda {

/// w8r straight from memory to the tensor cores: shortest start, for few tokens and small matrices.
void linear_w8r_direct(const LinearArgs& args, Stream stream);

/// w8r through tiles in shared memory and warpgroup instructions. q is 16-byte aligned.
void linear_w8r_tiled(const LinearArgs& args, Stream stream);

/// w8r for many tokens, by clusters that stay. q is 16-byte aligned.
void linear_w8r_large(const LinearArgs& args, Stream stream);

/// w4g32 straight from memory: dot products in any order, folds from warp to warp. For few tokens.
void linear_w4g32_direct(const LinearArgs& args, Stream stream);

/// w4g32 through tiles in shared memory.
void linear_w4g32_tiled(const LinearArgs& args, Stream stream);

}  // namespace fieldprint::backend::cuda
