#include "backend/cuda/device.h"

#include <cuda_runtime_api.h>

#include "base/check.h"

namespace fieldprint::backend::cuda {

void check(int error, const char* call) {
  CHECK(error == cudaSuccess, "{}: {}", call, cudaGetErrorString(static_cast<cudaError_t>(error)));
}

void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

void require(bool holds, const char* what) { CHECK(holds, "{}", what); }

int multiprocessors() {
  static const int count = [] {
    int device = 0;
    int value = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
    return value;
  }();
  return count;
}

}  // namespace fieldprint::backend::cuda
