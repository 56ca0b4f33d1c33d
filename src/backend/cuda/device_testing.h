#pragma once

#include <cuda_runtime_api.h>

namespace fieldprint::backend::cuda::testing {

inline bool has_device() {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
}

}  // namespace fieldprint::backend::cuda::testing
