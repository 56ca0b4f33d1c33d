#pragma once

#include "backend/cuda/device.h"

/// Launches that overlap with the end of the kernel before.
namespace fieldprint::backend::cuda {
namespace {

/// Programmatic dependent launch (CUDA programming guide): a kernel launched with launch_early() may start
/// when the blocks of the kernel before it have called let_later_kernels_start(), and must wait before it
/// reads or writes anything that an earlier kernel may touch. Every block waits, so that a kernel's end is
/// the end of all before it.
__device__ __forceinline__ void let_later_kernels_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ __forceinline__ void wait_for_earlier_kernels() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

struct LaunchShape {
  dim3 grid;
  int threads;
  int shared_bytes;
  int cluster;  ///< blocks
};

/// Launches a kernel that calls wait_for_earlier_kernels().
template <typename... Parameters, typename... Arguments>
void launch_early(const LaunchShape& shape, Stream stream, void (*kernel)(Parameters...),
                  const Arguments&... arguments) {
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "cudaLaunchKernelEx");
}

}  // namespace
}  // namespace fieldprint::backend::cuda
