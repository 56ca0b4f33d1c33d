#include <cooperative_groups.h>

#include <algorithm>

#include "backend/cuda/launch.cuh"
#include "backend/cuda/math.cuh"
#include "backend/cuda/quantize.h"

namespace fieldprint::backend::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / 32;

struct RowSums {
  std::int32_t first;
  std::int32_t second;
};

/// What the warps of a block tell each other about their row, and the blocks that share one.
struct Exchange {
  std::uint32_t largest[kMaxWarps];
  RowSums sums[kMaxWarps];
  float factor;
  std::uint32_t block_largest;
  RowSums block_sums;
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

__device__ RowSums warp_sums(RowSums lane) {
  return {__reduce_add_sync(kAllLanes, lane.first), __reduce_add_sync(kAllLanes, lane.second)};
}

/// Sums over the block's threads, for its first warp.
__device__ RowSums block_sums(RowSums own, Exchange& exchange) {
  own = warp_sums(own);
  if (lane_index() == 0) exchange.sums[warp_index()] = own;
  __syncthreads();
  return warp_sums(lane_index() < warps() ? exchange.sums[lane_index()] : RowSums{0, 0});
}

/// Largest magnitude of the row from that of the block, where blocks share a row.
__device__ std::uint32_t row_max(std::uint32_t largest, Exchange& exchange) {
  if (gridDim.x == 1) return largest;
  const auto cluster = cooperative_groups::this_cluster();
  if (threadIdx.x == 0) exchange.block_largest = largest;
  cluster.sync();
  const unsigned other = static_cast<unsigned>(lane_index()) % gridDim.x;
  return warp_max(*cluster.map_shared_rank(&exchange.block_largest, other));
}

/// Sums over the row from those of the block, for the first thread of the first block.
__device__ RowSums row_sums(RowSums own, Exchange& exchange) {
  if (gridDim.x == 1) return own;
  const auto cluster = cooperative_groups::this_cluster();
  if (threadIdx.x == 0) exchange.block_sums = own;
  cluster.sync();
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    for (unsigned other = 1; other < gridDim.x; ++other) {
      const RowSums sums = *cluster.map_shared_rank(&exchange.block_sums, other);
      own = {own.first + sums.first, own.second + sums.second};
    }
  }
  cluster.sync();  // nobody leaves while its sums are being read
  return own;
}

/// Lane i's part of the sum of squares: x[i], x[i + 32], … in this order. The loads of a batch are in flight
/// together; in the last one, a zero beyond the row changes nothing.
__device__ float lane_squares(const float* x, int cols) {
  constexpr int kBatch = 16;
  const int strides = cols / 32;
  x += lane_index();
  float sum = 0.0F;
  int first = 0;
#pragma unroll 2
  for (; first + kBatch <= strides; first += kBatch) {
    float batch[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) batch[j] = x[(first + j) * 32];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) sum = __fmaf_rn(batch[j], batch[j], sum);
  }
  float rest[kBatch];
#pragma unroll
  for (int j = 0; j < kBatch; ++j) rest[j] = first + j < strides ? x[(first + j) * 32] : 0.0F;
#pragma unroll
  for (int j = 0; j < kBatch; ++j) sum = __fmaf_rn(rest[j], rest[j], sum);
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

struct NormedRows {
  const float* x;
  const std::int32_t* rows;  ///< or null
  const float* weight;
  float epsilon;
  bool staged;

  __device__ NormedRow row(std::int64_t t, int cols, Exchange& exchange) const;
};

/// Row and weight are brought to shared memory where they fit, the constant weight while earlier kernels end;
/// one warp sums the squares, the others wait.
__device__ NormedRow NormedRows::row(std::int64_t t, int cols, Exchange& exchange) const {
  extern __shared__ float4 stage[];
  const int quads = cols / 4;
  NormedRow out{reinterpret_cast<const float4*>(x), reinterpret_cast<const float4*>(weight), 0.0F};
  const int first = static_cast<int>(threadIdx.x);
  const int stride = static_cast<int>(blockDim.x);
  if (staged) {
#pragma unroll 4
    for (int i = first; i < quads; i += stride) stage[quads + i] = out.weight[i];
    out.weight = stage + quads;
  }
  wait_for_earlier_kernels();
  if (rows != nullptr) t = rows[t];
  out.x += t * quads;
  if (staged) {
#pragma unroll 4
    for (int i = first; i < quads; i += stride) stage[i] = out.x[i];
    out.x = stage;
    __syncthreads();
  }
  if (warp_index() == 0) {
    const float squares = reduce_lanes(lane_squares(reinterpret_cast<const float*>(out.x), cols));
    if (lane_index() == 0) exchange.factor = inverse_rms(squares, cols, epsilon);
  }
  __syncthreads();
  out.factor = exchange.factor;
  return out;
}

struct PlainRow {
  const float4* x;
  __device__ float4 at(int i) const { return x[i]; }
};

struct PlainRows {
  const float* x;
  __device__ PlainRow row(std::int64_t t, int cols, Exchange&) const {
    wait_for_earlier_kernels();
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
    wait_for_earlier_kernels();
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

/// Each thread's share of a row: quad threadIdx.x of its block's part and every blockDim.x-th from there on,
/// in `rounds` rounds. With kHeld > 0 they are computed once and held, else computed in every pass. Beyond
/// the part they are 0. A part is a multiple of eight quads, a block of 32 columns.
template <class Row, int kHeld>
class Share {
 public:
  __device__ Share(const Row& row, int quads) : row_(row) {
    const int blocks = static_cast<int>(gridDim.x);
    const int part = (quads / 8 + blocks - 1) / blocks * 8;
    begin_ = min(static_cast<int>(blockIdx.x) * part, quads);
    end_ = min(begin_ + part, quads);
#pragma unroll
    for (int k = 0; k < kHeld; ++k) held_[k] = compute(index(k));
  }
  __device__ int rounds() const {
    const int threads = static_cast<int>(blockDim.x);
    return kHeld > 0 ? kHeld : (end_ - begin_ + threads - 1) / threads;
  }
  __device__ int index(int k) const {
    return begin_ + k * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  }
  __device__ bool holds(int k) const { return index(k) < end_; }
  __device__ float4 operator[](int k) const {
    if constexpr (kHeld > 0) {
      return held_[k];
    } else {
      return compute(index(k));
    }
  }

 private:
  __device__ float4 compute(int i) const { return i < end_ ? row_.at(i) : float4{0.0F, 0.0F, 0.0F, 0.0F}; }

  const Row& row_;
  int begin_;
  int end_;
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
  const float amax = bits_to_float(row_max(block_max(largest, exchange), exchange));
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
  const RowSums sums = row_sums(block_sums({first, second}, exchange), exchange);
  if (blockIdx.x != 0 || threadIdx.x != 0) return;
  if (!is_finite_scale(scale)) out.non_finite[t] = 1;
  out.scale[t] = scale;
  if (two_digits) {
    out.row_sum[2 * t] = sums.first;
    out.row_sum[2 * t + 1] = sums.second;
  } else {
    out.row_sum[t] = sums.first;
  }
}

/// One block a row, or several along x: a cluster, unless the format has a scale for each 32 columns.
template <class Rows, int kHeld>
__global__ void __launch_bounds__(kMaxThreads, 1) quantize_rows(Rows rows, QuantRows out) {
  let_later_kernels_start();
  __shared__ Exchange exchange;
  const std::int64_t t = blockIdx.y;
  const auto row = rows.row(t, out.cols, exchange);
  const Share<decltype(rows.row(t, 0, exchange)), kHeld> values(row, out.cols / 4);
  if (out.format == ActivationFormat::kA8G32) {
    quantise_blocks(values, out, t);
  } else {
    quantise_row(values, out, t, exchange);
  }
}

__global__ void __launch_bounds__(kMaxThreads, 1) norm_add_rows(NormAddArgs args, bool staged) {
  let_later_kernels_start();
  __shared__ Exchange exchange;
  const std::int64_t t = blockIdx.x;
  const NormedRow row =
      NormedRows{args.x, nullptr, args.weight, args.epsilon, staged}.row(t, args.cols, exchange);
  auto* residual = reinterpret_cast<float4*>(args.residual + t * args.cols);
  for (int i = static_cast<int>(threadIdx.x); i < args.cols / 4; i += static_cast<int>(blockDim.x)) {
    const float4 add = row.at(i);
    float4 sum = residual[i];
    sum = {__fadd_rn(sum.x, add.x), __fadd_rn(sum.y, add.y), __fadd_rn(sum.z, add.z),
           __fadd_rn(sum.w, add.w)};
    residual[i] = sum;
  }
}

/// Rows beyond this are not staged in shared memory.
constexpr std::int32_t kMostStagedCols = 16384;

int stage_bytes(std::int32_t cols) {
  return cols <= kMostStagedCols ? 2 * static_cast<int>(sizeof(float)) * cols : 0;
}

/// How rows are spread over the device.
struct Spread {
  int parts;  ///< blocks that share a row
  int threads;
  int held;  ///< quads of each thread
};

/// With few rows everything that can help does; with many, a thread that has more to do hides its waits.
Spread spread(std::int32_t tokens, std::int32_t cols, bool divisible) {
  constexpr int kMultiprocessors = 132;
  constexpr int kMostParts = 8;
  const int quads = cols / 4;
  int parts = 1;
  while (divisible && parts < kMostParts && quads > kMaxThreads * parts &&
         2 * parts * tokens <= kMultiprocessors) {
    parts *= 2;
  }
  const int part = (quads / 8 + parts - 1) / parts * 8;
  const int each = tokens <= kMultiprocessors ? 1 : 4;
  const int threads = std::min(((part + each - 1) / each + 31) / 32 * 32, kMaxThreads);
  return {parts, threads, (part + threads - 1) / threads};
}

template <class Rows, int kHeld>
void launch_held(const Rows& rows, const QuantRows& out, std::int32_t tokens, const Spread& spread,
                 int shared, Stream stream) {
  static const int allowed = cudaFuncSetAttribute(
      quantize_rows<Rows, kHeld>, cudaFuncAttributeMaxDynamicSharedMemorySize, stage_bytes(kMostStagedCols));
  check(allowed, "cudaFuncSetAttribute");
  const dim3 grid(static_cast<unsigned>(spread.parts), static_cast<unsigned>(tokens));
  const int cluster = out.format == ActivationFormat::kA8G32 ? 1 : spread.parts;
  launch_early({grid, spread.threads, shared, cluster}, stream, quantize_rows<Rows, kHeld>, rows, out);
}

template <class Rows>
void launch(const Rows& rows, const QuantRows& out, std::int32_t tokens, const Spread& spread, int shared,
            Stream stream) {
  if (tokens == 0) return;
  if (spread.held <= 1) return launch_held<Rows, 1>(rows, out, tokens, spread, shared, stream);
  if (spread.held <= 2) return launch_held<Rows, 2>(rows, out, tokens, spread, shared, stream);
  if (spread.held <= 4) return launch_held<Rows, 4>(rows, out, tokens, spread, shared, stream);
  if (spread.held <= 8) return launch_held<Rows, 8>(rows, out, tokens, spread, shared, stream);
  launch_held<Rows, 0>(rows, out, tokens, spread, shared, stream);
}

}  // namespace

void norm_quantize(const NormQuantizeArgs& args, std::int32_t tokens, Stream stream) {
  const int shared = stage_bytes(args.out.cols);
  const NormedRows rows{args.x, args.rows, args.weight, args.epsilon, shared > 0};
  launch(rows, args.out, tokens, spread(tokens, args.out.cols, false), shared, stream);
}

void norm_add(const NormAddArgs& args, std::int32_t tokens, Stream stream) {
  if (tokens == 0) return;
  static const int allowed = cudaFuncSetAttribute(norm_add_rows, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  stage_bytes(kMostStagedCols));
  check(allowed, "cudaFuncSetAttribute");
  const int shared = stage_bytes(args.cols);
  const int threads = spread(tokens, args.cols, false).threads;
  launch_early({dim3(static_cast<unsigned>(tokens)), threads, shared, 1}, stream, norm_add_rows, args,
               shared > 0);
}

void quantize(const QuantizeArgs& args, std::int32_t tokens, Stream stream) {
  launch(PlainRows{args.x}, args.out, tokens, spread(tokens, args.out.cols, true), 0, stream);
}

void gated_quantize(const GatedQuantizeArgs& args, std::int32_t tokens, Stream stream) {
  const Spread cut = spread(tokens, args.out.cols, true);
  if (args.function == GateFunction::kSilu) {
    launch(GatedRows<GateFunction::kSilu>{args.gate_up}, args.out, tokens, cut, 0, stream);
  } else {
    launch(GatedRows<GateFunction::kGelu>{args.gate_up}, args.out, tokens, cut, 0, stream);
  }
}

}  // namespace fieldprint::backend::cuda
