#include <cooperative_groups.h>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/math.cuh"
#include "backend/cuda/quantize.h"

namespace fieldprint::backend::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kRowBlocks = 8;  ///< a cluster of so many blocks shares a row of logits

__global__ void __launch_bounds__(kThreads) probability_rows(ProbabilitiesArgs args) {
  let_later_kernels_start();
  wait_for_earlier_kernels();
  __shared__ float warp_best[kWarps];
  __shared__ float block_best;
  const auto cluster = cooperative_groups::this_cluster();
  const std::int64_t row = blockIdx.y;
  const float* logits = args.logits + row * args.vocab;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int stride = static_cast<int>(gridDim.x * blockDim.x);

  float best = -INFINITY;
#pragma unroll 8
  for (int i = first; i < args.vocab; i += stride) best = fmaxf(best, logits[i]);  // passes NaN over
#pragma unroll
  for (int width = 16; width > 0; width /= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, width));
  if (lane == 0) warp_best[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) best = fmaxf(best, warp_best[w]);
    block_best = best;
  }
  cluster.sync();
  for (int b = 0; b < kRowBlocks; ++b) best = fmaxf(best, *cluster.map_shared_rank(&block_best, b));
  cluster.sync();  // nobody leaves while its maximum is being read
  // The maximum begins with the first logit, and nothing is larger than a NaN.
  if (isnan(logits[0])) best = logits[0];

  const float scale = args.scale[row];
#pragma unroll 4
  for (int i = first; i < args.vocab; i += stride) {
    const float x = __fmul_rn(__fsub_rn(logits[i], best), scale);
    const float p = isnan(x) ? 0.0F : exp2(x);
    args.p[row * args.vocab + i] = __float2int_rn(__fmul_rn(p, exact::kProbabilityOne));
  }
}

}  // namespace

void probabilities(const ProbabilitiesArgs& args, std::int32_t rows, Stream stream) {
  if (rows == 0) return;
  const dim3 grid(kRowBlocks, static_cast<unsigned>(rows));
  launch_early({grid, kThreads, 0, kRowBlocks}, stream, probability_rows, args);
}

}  // namespace fieldprint::backend::cuda
