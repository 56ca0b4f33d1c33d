#include "backend/cuda/tensor_map.h"

#include <cuda_runtime_api.h>

#include "backend/cuda/device.h"
#include "base/check.h"

namespace fieldprint::backend::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// From the driver that the runtime has loaded: nothing is linked against it, so that programs start without
/// one.
Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
      "cudaGetDriverEntryPointByVersion");
  CHECK(found == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<Encode>(function);
}

}  // namespace

CUtensorMap byte_matrix_map(const void* data, std::int64_t rows, std::int64_t row_bytes, Box box) {
  static const Encode encode = find_encode();
  CUtensorMap map{};
  const cuuint64_t extent[2] = {static_cast<cuuint64_t>(row_bytes), static_cast<cuuint64_t>(rows)};
  const cuuint64_t stride[1] = {static_cast<cuuint64_t>(row_bytes)};
  const cuuint32_t size[2] = {static_cast<cuuint32_t>(box.bytes), static_cast<cuuint32_t>(box.rows)};
  const cuuint32_t step[2] = {1, 1};
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 2, const_cast<void*>(data), extent, stride, size, step,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled of {} rows of {} bytes: error {}", rows, row_bytes,
        static_cast<int>(result));
  return map;
}

}  // namespace fieldprint::backend::cuda
