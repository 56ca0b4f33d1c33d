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

template <std::size_t kRank>
CUtensorMap byte_map(const void* data, const std::array<std::uint64_t, kRank>& extent,
                     const std::array<std::uint64_t, kRank - 1>& stride,
                     const std::array<std::uint32_t, kRank>& box) {
  static const Encode encode = find_encode();
  CUtensorMap map{};
  std::array<std::uint32_t, kRank> step;
  step.fill(1);
  const CUtensorMapSwizzle swizzle = box[0] == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, kRank, const_cast<void*>(data), extent.data(),
             stride.data(), box.data(), step.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS, "cuTensorMapEncodeTiled of {} dimensions, {} bytes innermost: error {}",
        kRank, extent[0], static_cast<int>(result));
  return map;
}
template CUtensorMap byte_map<2>(const void*, const std::array<std::uint64_t, 2>&,
                                 const std::array<std::uint64_t, 1>&, const std::array<std::uint32_t, 2>&);
template CUtensorMap byte_map<3>(const void*, const std::array<std::uint64_t, 3>&,
                                 const std::array<std::uint64_t, 2>&, const std::array<std::uint32_t, 3>&);
template CUtensorMap byte_map<4>(const void*, const std::array<std::uint64_t, 4>&,
                                 const std::array<std::uint64_t, 3>&, const std::array<std::uint32_t, 4>&);

CUtensorMap byte_matrix_map(const void* data, std::int64_t rows, std::int64_t row_bytes, Box box) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(row_bytes);
  return byte_map<2>(data, {bytes, static_cast<std::uint64_t>(rows)}, {bytes},
                     {static_cast<std::uint32_t>(box.bytes), static_cast<std::uint32_t>(box.rows)});
}

}  // namespace fieldprint::backend::cuda
