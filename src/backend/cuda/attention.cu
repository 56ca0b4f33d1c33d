#include "backend/cuda/attention.h"
#include "backend/cuda/attention_columns.cuh"
#include "backend/cuda/attention_rows.h"
#include "backend/cuda/attention_state.cuh"

namespace fieldprint::backend::cuda {
namespace {

constexpr int kFoldWarps = 4;

/// A state of one row, held by a warp: lane l has channels l, l + 32, …
template <int kOutputs>
struct RowState {
  float maximum;
  float denominator;
  float output[kOutputs];

  __device__ void clear() {
    maximum = no_maximum();
    denominator = kNothing;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) output[i] = kNothing;
  }

  __device__ void append(const RowState<kOutputs>& next) {
    const MergeFactors factors = merge_factors(maximum, next.maximum);
    maximum = factors.maximum;
    scale_and_add(next, factors);
  }

  /// The merge of what is not the maximum.
  __device__ void scale_and_add(const RowState<kOutputs>& next, const MergeFactors& factors) {
    denominator = merge(denominator, next.denominator, factors);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) output[i] = merge(output[i], next.output[i], factors);
  }

  __device__ void load_output(const StateView& states, std::int64_t state, std::int32_t head, int lane) {
    const float* from = states.output(state, head);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      if (32 * i + lane < states.head_dim) output[i] = from[32 * i + lane];
    }
  }
};

/// The sink: a tile of one token, whose weight is the largest, so that the query enters the maximum alone.
template <int kOutputs>
__device__ void attend_sink(const AttentionArgs& args, std::int32_t block, std::int64_t token,
                            std::int32_t head, int lane, RowState<kOutputs>& state) {
  const std::int32_t dim = args.head_dim;
  const std::uint8_t* page = args.kv.pool + block * args.kv.block_stride + args.kv.layer_offset +
                             static_cast<std::int64_t>(head / (args.heads / args.kv_heads)) * page_size(dim);
  const std::int64_t row = token * args.heads + head;
  const int* key = reinterpret_cast<const int*>(page);
  const int* query = reinterpret_cast<const int*>(args.q + row * dim);
  int dot = 0;
  for (int i = lane; i < dim / 4; i += 32) dot = __dp4a(key[i], query[i], dot);
  dot = __reduce_add_sync(kAllLanes, dot);
  const std::uint16_t* scales = reinterpret_cast<const std::uint16_t*>(page + 128 * dim);
  const float score = __fmul_rn(__int2float_rn(dot), __fmul_rn(args.q_scale[row], from_bf16(scales[0])));
  state.clear();
  // A NaN is passed over by the maximum, which then stays empty.
  if (!(fabsf(score) <= exact::kMaxFloat)) return;
  state.maximum = score;
  state.denominator = 1.0F;
  const float largest = fmaxf(from_bf16(scales[exact::kPageTokens]), 0.0F);
  const bool zero = largest < exact::kSmallestWeight;
  const float unit = zero ? 0.0F : __fdiv_rn(largest, exact::kWeightMax);
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int channel = 32 * i + lane;
    if (channel >= dim) continue;
    const int value = static_cast<std::int8_t>(page[exact::kPageTokens * (dim + channel)]);
    state.output[i] = zero ? 0.0F : __fmul_rn(__int2float_rn(65535 * value), unit);
  }
}

/// Holds the anchors' share between floor and ceiling, and returns the share given.
template <int kOutputs>
__device__ float apply_mass_policy(const PlannedSequence& sequence, RowState<kOutputs>& anchors,
                                   const RowState<kOutputs>& context) {
  if (isinf(anchors.maximum)) return 0.0F;
  if (isinf(context.maximum)) return 1.0F;
  const float maximum = fmaxf(anchors.maximum, context.maximum);
  float mine = __fmul_rn(anchors.denominator, exp2(__fsub_rn(anchors.maximum, maximum)));
  const float others = __fmul_rn(context.denominator, exp2(__fsub_rn(context.maximum, maximum)));
  float odds = -1.0F;
  if (mine < __fmul_rn(sequence.floor_odds, others)) odds = sequence.floor_odds;
  if (mine > __fmul_rn(sequence.ceiling_odds, others)) odds = sequence.ceiling_odds;
  if (odds >= 0.0F) {
    const float wanted = __fmul_rn(context.denominator, odds);
    const float factor = __fdiv_rn(wanted, anchors.denominator);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) anchors.output[i] = __fmul_rn(anchors.output[i], factor);
    anchors.denominator = wanted;
    anchors.maximum = context.maximum;
    mine = __fmul_rn(odds, others);
  }
  return __fdiv_rn(mine, __fadd_rn(mine, others));
}

/// Where the parts of one row's context lie, in order.
struct Parts {
  const StateView& states;
  const PlannedQuery& query;
  std::int32_t head;
  std::int32_t skipped;  ///< parts of the first group that are not there

  __device__ bool has(std::int32_t i) const { return i >= skipped && i < skipped + query.parts; }
  __device__ std::int64_t state(std::int32_t i) const {
    return query.state + static_cast<std::int64_t>(i - skipped) * query.state_stride;
  }
};

/// Folds groups of kGroup parts, and these into `context`. Only outputs and denominators need the order: the
/// maxima on the way, and so every factor, are prefix maxima, which the lanes find for 32 parts at once.
template <int kGroup, int kOutputs>
__device__ void fold_parts(const Parts& parts, int lane, RowState<kOutputs>& context) {
  constexpr int kAhead = 4;
  static_assert(kAhead % kGroup == 0);
  const std::int32_t end = parts.skipped + parts.query.parts;
  for (std::int32_t first = 0; first < end; first += 32) {
    float maximum = no_maximum();
    float denominator = kNothing;
    if (parts.has(first + lane)) {
      const float* softmax = parts.states.softmax(parts.state(first + lane), parts.head);
      maximum = softmax[0];
      denominator = softmax[1];
    }
    float group = maximum;
#pragma unroll
    for (int step = 1; step < kGroup; step *= 2) {
      const float before = __shfl_up_sync(kAllLanes, group, step, kGroup);
      if (lane % kGroup >= step) group = fmaxf(group, before);
    }
    float before = __shfl_up_sync(kAllLanes, group, 1, kGroup);
    if (lane % kGroup == 0) before = no_maximum();
    const MergeFactors part_factors = merge_factors(before, maximum);
    // The last lane of a group has its maximum.
    float row = __shfl_sync(kAllLanes, group, kGroup - 1, kGroup);
    const float whole = row;
#pragma unroll
    for (int step = kGroup; step < 32; step *= 2) {
      const float earlier = __shfl_up_sync(kAllLanes, row, step);
      if (lane >= step) row = fmaxf(row, earlier);
    }
    before = __shfl_up_sync(kAllLanes, row, kGroup);
    before = fmaxf(lane < kGroup ? no_maximum() : before, context.maximum);
    const MergeFactors group_factors = merge_factors(before, whole);

    const std::int32_t count = min(end - first, 32);
    for (std::int32_t k = 0; k < count; k += kAhead) {
      RowState<kOutputs> next[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        next[j].clear();
        if (parts.has(first + k + j)) {
          next[j].load_output(parts.states, parts.state(first + k + j), parts.head, lane);
        }
      }
      RowState<kOutputs> sum;
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (j % kGroup == 0) sum.clear();
        const MergeFactors f{0.0F, __shfl_sync(kAllLanes, part_factors.mine, k + j),
                             __shfl_sync(kAllLanes, part_factors.next, k + j)};
        next[j].denominator = __shfl_sync(kAllLanes, denominator, k + j);
        sum.scale_and_add(next[j], f);
        if ((j + 1) % kGroup != 0) continue;
        const MergeFactors g{0.0F, __shfl_sync(kAllLanes, group_factors.mine, k + j),
                             __shfl_sync(kAllLanes, group_factors.next, k + j)};
        context.scale_and_add(sum, g);
      }
    }
    context.maximum = fmaxf(context.maximum, __shfl_sync(kAllLanes, row, 31));
  }
}

template <int kOutputs>
__device__ void fold_context(const StateView& states, const PlannedQuery& query, std::int32_t head, int lane,
                             RowState<kOutputs>& context) {
  constexpr int kGroupChunks = exact::kGroupTiles / exact::kChunkTiles;
  context.clear();
  if (query.first_chunk >= 0) {
    fold_parts<kGroupChunks>({states, query, head, query.first_chunk % kGroupChunks}, lane, context);
  } else {
    fold_parts<1>({states, query, head, 0}, lane, context);
  }
}

/// A warp a row: sink, then anchors, then context.
template <int kOutputs>
__global__ void __launch_bounds__(32 * kFoldWarps) fold_kernel(const __grid_constant__ ColumnsArgs args) {
  const std::int32_t heads = args.attention.heads;
  const std::int32_t dim = args.attention.head_dim;
  const std::int64_t index =
      static_cast<std::int64_t>(blockIdx.x) * kFoldWarps + static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int32_t head = static_cast<std::int32_t>(index % heads);
  const bool exists = index / heads < args.plan.header->queries;
  const PlannedQuery query = args.plan.queries()[exists ? index / heads : 0];
  const PlannedSequence sequence = args.plan.sequences()[query.sequence];
  const bool sink_seen = args.attention.window == 0 || query.position < args.attention.window;
  RowState<kOutputs> state;
  state.clear();
  if (exists && sink_seen) {
    attend_sink(args.attention, sequence.sink_block, query.token, head, lane, state);
  }
  // Here the items' states are complete.
  asm volatile("griddepcontrol.wait;" ::: "memory");
  if (!exists) return;

  RowState<kOutputs> anchors;
  anchors.clear();
  if (query.anchor_state >= 0) {
    const float* softmax = args.states.softmax(query.anchor_state, head);
    anchors.maximum = softmax[0];
    anchors.denominator = softmax[1];
    anchors.load_output(args.states, query.anchor_state, head, lane);
  }
  RowState<kOutputs> context;
  fold_context(args.states, query, head, lane, context);
  const float mass = apply_mass_policy(sequence, anchors, context);
  state.append(anchors);
  state.append(context);
  const std::int64_t row = static_cast<std::int64_t>(query.token) * heads + head;
  if (lane == 0) args.attention.anchor_mass[row] = mass;
  const float inverse = __frcp_rn(state.denominator);
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int channel = 32 * i + lane;
    if (channel < dim) args.attention.out[row * dim + channel] = __fmul_rn(state.output[i], inverse);
  }
}

/// Launched while the kernel before it runs; waits for it on the device.
template <int kOutputs>
void launch_fold(const ColumnsArgs& args, std::int32_t queries, Stream stream) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  const std::int64_t rows = static_cast<std::int64_t>(queries) * args.attention.heads;
  config.gridDim = dim3(static_cast<unsigned>((rows + kFoldWarps - 1) / kFoldWarps));
  config.blockDim = dim3(32 * kFoldWarps);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, fold_kernel<kOutputs>, args), "attention fold");
}

}  // namespace

void attention(const AttentionArgs& args, const DevicePlan& plan, float* workspace, Stream stream) {
  const ColumnsArgs columns{
      args, {static_cast<const PlanHeader*>(plan.buffer)}, {workspace, args.heads, args.head_dim}, 0};
  if (plan.row_items > 0) {
    launch_rows({columns.attention, columns.plan, columns.states, 0}, plan.row_items, stream);
  }
  const std::int32_t group = args.heads / args.kv_heads;
  if (plan.items == 0) {
    // Row items stand alone.
  } else if (group <= 4) {
    launch_columns4(columns, plan.multiprocessors, stream);
  } else if (group <= 8) {
    launch_columns8(columns, plan.multiprocessors, stream);
  } else {
    launch_columns16(columns, plan.multiprocessors, stream);
  }
  if (args.head_dim <= 64) {
    launch_fold<2>(columns, plan.queries, stream);
  } else if (args.head_dim <= 128) {
    launch_fold<4>(columns, plan.queries, stream);
  } else {
    launch_fold<8>(columns, plan.queries, stream);
  }
}

}  // namespace fieldprint::backend::cuda
