#include "backend/cuda/bandwidth.h"

namespace fieldprint::backend::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kLoads = 8;  // in flight in a thread

__global__ void __launch_bounds__(kThreads)
    read_kernel(const uint4* data, std::int64_t count, std::uint32_t* sink) {
  std::uint32_t all = 0;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride * kLoads) {
    uint4 x[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      x[j] = i + j * stride < count ? __ldcs(data + i + j * stride) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) all |= x[j].x ^ x[j].y ^ x[j].z ^ x[j].w;
  }
  if (all == 0x5EED5EEDU) *sink = all;
}

}  // namespace

void read_all(const void* data, std::int64_t bytes, std::uint32_t* sink, Stream stream) {
  constexpr unsigned kBlocks = 132 * 8;
  read_kernel<<<kBlocks, kThreads, 0, stream>>>(static_cast<const uint4*>(data), bytes / 16, sink);
  check_launch("read_all");
}

}  // namespace fieldprint::backend::cuda
