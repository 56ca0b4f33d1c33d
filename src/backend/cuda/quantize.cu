#include <cooperative_groups.h>

#include <algorithm>

#include "backend/cuda/math.cuh"
#include "backend/cuda/quantize.h"

namespace fieldprint::backend::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / 32;

/// What the warps of a block tell each other about their row.
struct Exchange {
  std::uint32_t largest[kMaxWarps];
  std::int32_t sums[2][kMaxWarps];
  float factor;
};

__device__ int warp_index() { return static_cast<int>(threadIdx.x) / 32; }
__device__ int lane_index() { return static_cast<int>(threadIdx.x) % 32; }
__device__ int warps() { return static_cast<int>(blockDim.x) / 32; }

/// Largest magnitude of the block's threads, for all of them.
__device__ std::uint32_t block_max(std::uint32_t largest, Exchange& exchange) {
  largest = warp_max(largest);
  if (lane_index() == 0) exchange.largest[warp_index()] = largest;
  __syncthreads();
  return warp_max(lane_index() < warps() ? exchange.largest[lane_index()] : 0U);
}

/// Sum over the warp of one of the block's sums, whole warps after the barrier.
__device__ std::int32_t sum_of(const std::int32_t (&sums)[kMaxWarps]) {
  return __reduce_add_sync(kAllLanes, lane_index() < warps() ? sums[lane_index()] : 0);
}

/// Lane i's part of the sum of squares: x[i], x[i + 32], … in this order. Loads run one batch ahead of the
/// chain of fma; a zero beyond the row changes nothing.
__device__ float lane_squares(const float* x, int cols) {
  constexpr int kBatch = 16;
  const int strides = cols / 32;
  float next[kBatch];
  const auto load = [&](int first) {
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      next[j] = first + j < strides ? x[(first + j) * 32 + lane_index()] : 0.0F;
    }
  };
  load(0);
  float sum = 0.0F;
  for (int first = 0; first < strides; first += kBatch) {
    float now[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) now[j] = next[j];
    load(first + kBatch);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) sum = __fmaf_rn(now[j], now[j], sum);
  }
  return sum;
}

__device__ float normed(float x, float factor, float weight) {
  return __fmul_rn(__fmul_rn(x, factor), weight);
}

/// A row times its inverse rms and the norm's weight.
struct NormedRow {
  const float4* x;
  const float4* weight;
  float factor;

  __device__ float4 at(int i) const {
    const float4 a = x[i];
    const float4 w = weight[i];
    return {normed(a.x, factor, w.x), normed(a.y, factor, w.y), normed(a.z, factor, w.z),
            normed(a.w, factor, w.w)};
  }
};

/// Row and weight are brought to shared memory where they fit: one warp sums the squares, the others wait.
__device__ NormedRow norm_row(const float* x, const float* weight, int cols, float epsilon, bool staged,
                              Exchange& exchange) {
  extern __shared__ float4 stage[];
  const int quads = cols / 4;
  NormedRow row{reinterpret_cast<const float4*>(x), reinterpret_cast<const float4*>(weight), 0.0F};
  if (staged) {
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < quads; i += static_cast<int>(blockDim.x)) {
      stage[i] = row.x[i];
      stage[quads + i] = row.weight[i];
    }
    row.x = stage;
    row.weight = stage + quads;
    __syncthreads();
  }
  if (warp_index() == 0) {
    const float squares = reduce_lanes(lane_squares(reinterpret_cast<const float*>(row.x), cols));
    if (lane_index() == 0) exchange.factor = inverse_rms(squares, cols, epsilon);
  }
  __syncthreads();
  row.factor = exchange.factor;
  return row;
}

struct NormedRows {
  const float* x;
  const std::int32_t* rows;
  const float* weight;
  float epsilon;
  bool staged;

  __device__ NormedRow row(std::int64_t t, int cols, Exchange& exchange) const {
    const std::int64_t from = rows != nullptr ? rows[t] : t;
    return norm_row(x + from * cols, weight, cols, epsilon, staged, exchange);
  }
};

struct PlainRow {
  const float4* x;
  __device__ float4 at(int i) const { return x[i]; }
};

struct PlainRows {
  const float* x;
  __device__ PlainRow row(std::int64_t t, int cols, Exchange&) const {
    return {reinterpret_cast<const float4*>(x + t * cols)};
  }
};

template <GateFunction kFunction>
struct GatedRow {
  const float4* gate;
  const float4* up;

  __device__ static float gated(float gate, float up) {
    return __fmul_rn(kFunction == GateFunction::kSilu ? silu(gate) : gelu(gate), up);
  }
  __device__ float4 at(int i) const {
    const float4 g = gate[i];
    const float4 u = up[i];
    return {gated(g.x, u.x), gated(g.y, u.y), gated(g.z, u.z), gated(g.w, u.w)};
  }
};

template <GateFunction kFunction>
struct GatedRows {
  const float* gate_up;
  __device__ GatedRow<kFunction> row(std::int64_t t, int cols, Exchange&) const {
    const auto* gate = reinterpret_cast<const float4*>(gate_up + 2 * t * cols);
    return {gate, gate + cols / 4};
  }
};

__device__ std::uint32_t largest_of(float4 v) {
  return max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w)));
}

__device__ int4 quantise_quad(float4 v, float inverse) {
  return {quantise(v.x, inverse), quantise(v.y, inverse), quantise(v.z, inverse), quantise(v.w, inverse)};
}

__device__ std::int32_t sum(int4 q) { return (q.x + q.y) + (q.z + q.w); }

__device__ void store(std::int8_t* row, int i, int4 q) {
  reinterpret_cast<char4*>(row)[i] = {static_cast<signed char>(q.x), static_cast<signed char>(q.y),
                                      static_cast<signed char>(q.z), static_cast<signed char>(q.w)};
}

/// q = 256·h + l in balanced digits.
__device__ int4 high_digits(int4 q) {
  return {(q.x + 128) >> 8, (q.y + 128) >> 8, (q.z + 128) >> 8, (q.w + 128) >> 8};
}
__device__ int4 low_digits(int4 q, int4 h) {
  return {q.x - 256 * h.x, q.y - 256 * h.y, q.z - 256 * h.z, q.w - 256 * h.w};
}

/// Each thread's share of a row: quads threadIdx.x, threadIdx.x + blockDim.x, … in `rounds` rounds. With
/// kHeld > 0 they are computed once and held, else computed in every pass. Beyond the row they are 0.
template <class Row, int kHeld>
class Share {
 public:
  __device__ Share(const Row& row, int quads) : row_(row), quads_(quads) {
#pragma unroll
    for (int k = 0; k < kHeld; ++k) held_[k] = compute(index(k));
  }
  __device__ int rounds() const {
    return kHeld > 0 ? kHeld : (quads_ + static_cast<int>(blockDim.x) - 1) / static_cast<int>(blockDim.x);
  }
  __device__ static int index(int k) {
    return k * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  }
  __device__ bool holds(int k) const { return index(k) < quads_; }
  __device__ float4 operator[](int k) const {
    if constexpr (kHeld > 0) {
      return held_[k];
    } else {
      return compute(index(k));
    }
  }

 private:
  __device__ float4 compute(int i) const { return i < quads_ ? row_.at(i) : float4{0.0F, 0.0F, 0.0F, 0.0F}; }

  const Row& row_;
  int quads_;
  float4 held_[kHeld > 0 ? kHeld : 1];
};

/// a8g32: a block of 32 columns is a quad of each of 8 neighbouring lanes.
template <class Values>
__device__ void quantise_blocks(const Values& values, const QuantRows& out, std::int64_t t) {
  const std::int64_t blocks = out.cols / exact::kBlockCols;
  std::int8_t* row = out.q + t * out.cols;
#pragma unroll
  for (int k = 0; k < values.rounds(); ++k) {
    const float4 v = values[k];
    std::uint32_t largest = largest_of(v);
#pragma unroll
    for (int width = 4; width > 0; width /= 2) {
      largest = max(largest, __shfl_xor_sync(kAllLanes, largest, width));
    }
    const auto [inverse, scale] = quant_scale(bits_to_float(largest), exact::kA8Max);
    const int4 q = quantise_quad(v, inverse);
    std::int32_t total = sum(q);
#pragma unroll
    for (int width = 4; width > 0; width /= 2) total += __shfl_xor_sync(kAllLanes, total, width);
    if (!values.holds(k)) continue;
    store(row, values.index(k), q);
    if (lane_index() % 8 == 0) {
      const std::int64_t block = t * blocks + values.index(k) / 8;
      if (!is_finite_scale(scale)) out.non_finite[t] = 1;
      out.scale[block] = scale;
      out.block_sum[block] = is_finite_scale(scale) ? __fmul_rn(scale, __int2float_rn(total)) : scale;
    }
  }
}

/// a8 and a16: one scale for the row.
template <class Values>
__device__ void quantise_row(const Values& values, const QuantRows& out, std::int64_t t, Exchange& exchange) {
  const bool two_digits = out.format == ActivationFormat::kA16;
  std::uint32_t largest = 0;
#pragma unroll
  for (int k = 0; k < values.rounds(); ++k) largest = max(largest, largest_of(values[k]));
  const float amax = bits_to_float(block_max(largest, exchange));
  const auto [inverse, scale] = quant_scale(amax, two_digits ? exact::kA16Max : exact::kA8Max);
  std::int8_t* row = out.q + (two_digits ? 2 : 1) * t * out.cols;
  std::int32_t first = 0;
  std::int32_t second = 0;
#pragma unroll
  for (int k = 0; k < values.rounds(); ++k) {
    if (!values.holds(k)) continue;
    int4 q = quantise_quad(values[k], inverse);
    if (two_digits) {
      const int4 high = high_digits(q);
      const int4 low = low_digits(q, high);
      store(row + out.cols, values.index(k), low);
      second += sum(low);
      q = high;
    }
    store(row, values.index(k), q);
    first += sum(q);
  }
  first = __reduce_add_sync(kAllLanes, first);
  second = __reduce_add_sync(kAllLanes, second);
  if (lane_index() == 0) {
    exchange.sums[0][warp_index()] = first;
    exchange.sums[1][warp_index()] = second;
  }
  __syncthreads();
  if (warp_index() != 0) return;
  first = sum_of(exchange.sums[0]);
  second = sum_of(exchange.sums[1]);
  if (lane_index() != 0) return;
  if (!is_finite_scale(scale)) out.non_finite[t] = 1;
  out.scale[t] = scale;
  if (two_digits) {
    out.row_sum[2 * t] = first;
    out.row_sum[2 * t + 1] = second;
  } else {
    out.row_sum[t] = first;
  }
}

/// One block a row.
template <class Rows, int kHeld>
__global__ void __launch_bounds__(kMaxThreads) quantize_rows(Rows rows, QuantRows out) {
  __shared__ Exchange exchange;
  const std::int64_t t = blockIdx.x;
  const auto row = rows.row(t, out.cols, exchange);
  const Share<decltype(rows.row(t, 0, exchange)), kHeld> values(row, out.cols / 4);
  if (out.format == ActivationFormat::kA8G32) {
    quantise_blocks(values, out, t);
  } else {
    quantise_row(values, out, t, exchange);
  }
}

__global__ void __launch_bounds__(kMaxThreads) norm_add_rows(NormAddArgs args, bool staged) {
  __shared__ Exchange exchange;
  const std::int64_t t = blockIdx.x;
  const NormedRow row =
      norm_row(args.x + t * args.cols, args.weight, args.cols, args.epsilon, staged, exchange);
  auto* residual = reinterpret_cast<float4*>(args.residual + t * args.cols);
  for (int i = static_cast<int>(threadIdx.x); i < args.cols / 4; i += static_cast<int>(blockDim.x)) {
    const float4 add = row.at(i);
    float4 sum = residual[i];
    sum = {__fadd_rn(sum.x, add.x), __fadd_rn(sum.y, add.y), __fadd_rn(sum.z, add.z),
           __fadd_rn(sum.w, add.w)};
    residual[i] = sum;
  }
}

constexpr int kRowBlocks = 8;  ///< a cluster of so many blocks shares a row of logits

__global__ void __cluster_dims__(kRowBlocks, 1, 1) __launch_bounds__(kMaxThreads)
    probability_rows(ProbabilitiesArgs args) {
  __shared__ float warp_best[kMaxWarps];
  __shared__ float block_best;
  const auto cluster = cooperative_groups::this_cluster();
  const std::int64_t row = blockIdx.y;
  const float* logits = args.logits + row * args.vocab;
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int stride = static_cast<int>(gridDim.x * blockDim.x);

  float best = -INFINITY;
#pragma unroll 8
  for (int i = first; i < args.vocab; i += stride) best = fmaxf(best, logits[i]);  // passes NaN over
#pragma unroll
  for (int width = 16; width > 0; width /= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, width));
  if (lane_index() == 0) warp_best[warp_index()] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < warps(); ++w) best = fmaxf(best, warp_best[w]);
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

/// Rows beyond this are not staged in shared memory.
constexpr std::int32_t kMostStagedCols = 16384;

std::size_t stage_bytes(std::int32_t cols) {
  return cols <= kMostStagedCols ? 2 * sizeof(float) * static_cast<std::size_t>(cols) : 0;
}

/// Launches with as many threads as give each `quads_each` quads.
int threads_for(std::int32_t cols, int quads_each) {
  const int quads = cols / 4;
  const int threads = (quads + quads_each - 1) / quads_each;
  return std::min((threads + 31) / 32 * 32, kMaxThreads);
}

/// With few rows every thread that helps is used; with many, a thread that has more to do hides its waits.
int quads_each(std::int32_t tokens) {
  constexpr std::int32_t kFewRows = 132;
  return tokens <= kFewRows ? 1 : 4;
}

template <class Rows, int kHeld>
void launch_held(const Rows& rows, const QuantRows& out, std::int32_t tokens, int threads, std::size_t shared,
                 Stream stream) {
  constexpr int kMostShared = 2 * static_cast<int>(sizeof(float)) * kMostStagedCols;
  static const int allowed = cudaFuncSetAttribute(quantize_rows<Rows, kHeld>,
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared);
  check(allowed, "cudaFuncSetAttribute");
  quantize_rows<Rows, kHeld><<<static_cast<unsigned>(tokens), threads, shared, stream>>>(rows, out);
  check_launch("quantize_rows");
}

template <class Rows>
void launch(const Rows& rows, const QuantRows& out, std::int32_t tokens, std::size_t shared, Stream stream) {
  if (tokens == 0) return;
  const int threads = threads_for(out.cols, quads_each(tokens));
  const int held = (out.cols / 4 + threads - 1) / threads;
  if (held <= 1) return launch_held<Rows, 1>(rows, out, tokens, threads, shared, stream);
  if (held <= 2) return launch_held<Rows, 2>(rows, out, tokens, threads, shared, stream);
  if (held <= 4) return launch_held<Rows, 4>(rows, out, tokens, threads, shared, stream);
  if (held <= 8) return launch_held<Rows, 8>(rows, out, tokens, threads, shared, stream);
  launch_held<Rows, 0>(rows, out, tokens, threads, shared, stream);
}

}  // namespace

void norm_quantize(const NormQuantizeArgs& args, std::int32_t tokens, Stream stream) {
  const std::size_t shared = stage_bytes(args.out.cols);
  launch(NormedRows{args.x, args.rows, args.weight, args.epsilon, shared > 0}, args.out, tokens, shared,
         stream);
}

void norm_add(const NormAddArgs& args, std::int32_t tokens, Stream stream) {
  if (tokens == 0) return;
  const std::size_t shared = stage_bytes(args.cols);
  static const int allowed = cudaFuncSetAttribute(norm_add_rows, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  static_cast<int>(stage_bytes(kMostStagedCols)));
  check(allowed, "cudaFuncSetAttribute");
  const int threads = threads_for(args.cols, quads_each(tokens));
  norm_add_rows<<<static_cast<unsigned>(tokens), threads, shared, stream>>>(args, shared > 0);
  check_launch("norm_add_rows");
}

void quantize(const QuantizeArgs& args, std::int32_t tokens, Stream stream) {
  launch(PlainRows{args.x}, args.out, tokens, 0, stream);
}

void gated_quantize(const GatedQuantizeArgs& args, std::int32_t tokens, Stream stream) {
  if (args.function == GateFunction::kSilu) {
    launch(GatedRows<GateFunction::kSilu>{args.gate_up}, args.out, tokens, 0, stream);
  } else {
    launch(GatedRows<GateFunction::kGelu>{args.gate_up}, args.out, tokens, 0, stream);
  }
}

void probabilities(const ProbabilitiesArgs& args, std::int32_t rows, Stream stream) {
  if (rows == 0) return;
  probability_rows<<<dim3(kRowBlocks, static_cast<unsigned>(rows)), kMaxThreads, 0, stream>>>(args);
  check_launch("probability_rows");
}

}  // namespace fieldprint::backend::cuda
