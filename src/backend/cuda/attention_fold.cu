#include "backend/cuda/attention_columns.cuh"
#include "backend/cuda/launch.cuh"

/// The fold of partial states to results: a warp a row, or a slice of a row's channels where there are few
/// rows. Only outputs and denominators need the order of the parts: references are raised so seldom that the
/// factors of 32 parts are found at once.
namespace fieldprint::backend::cuda {
namespace {

constexpr int kFoldWarps = 4;  // few, so that blocks fit beside those of the kernel before

/// A row's state: a lane has channels first + 32·i.
template <int kOutputs>
struct RowState {
  float reference;
  float denominator;
  float output[kOutputs];

  __device__ void clear() {
    reference = no_reference();
    denominator = kNothing;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) output[i] = kNothing;
  }

  __device__ void add(const RowState<kOutputs>& next, const Fold& by) {
    denominator = fold(denominator, next.denominator, by);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) output[i] = fold(output[i], next.output[i], by);
  }
  __device__ void append(const RowState<kOutputs>& next) { add(next, fold_references(reference, next.reference)); }
};

/// One (query, head), and the lane's first channel.
struct FoldRow {
  const ColumnsArgs& args;
  const PlannedQuery& query;
  std::int32_t head;
  std::int32_t channel;
  int lane;

  __device__ std::int32_t kv_head() const { return head / (args.attention.heads / args.attention.kv_heads); }
  __device__ bool has(int i) const { return channel + 32 * i < args.attention.head_dim; }
};

/// The sink: one token, whose scales have factors of their own.
template <int kOutputs>
__device__ void attend_sink(const FoldRow& at, std::int32_t block, RowState<kOutputs>& state) {
  const AttentionArgs& args = at.args.attention;
  const std::int32_t dim = args.head_dim;
  const std::uint8_t* page = args.kv.pool + block * args.kv.block_stride + args.kv.layer_offset +
                             static_cast<std::int64_t>(at.kv_head()) * page_size(dim);
  const std::int64_t row = static_cast<std::int64_t>(at.query.token) * args.heads + at.head;
  const int* key = reinterpret_cast<const int*>(page);
  const int* query = reinterpret_cast<const int*>(args.q + row * dim);
  int dot = 0;
  for (int i = at.lane; i < dim / 4; i += 32) dot = __dp4a(key[i], query[i], dot);
  dot = __reduce_add_sync(kAllLanes, dot);
  const float* factors = args.scales.sink + 4 * at.kv_head();
  state.reference =
      __fmul_rn(__fmul_rn(__int2float_rn(dot), score_unit(args.q_step[row])), factors[kSinkKeyScale]);
  state.denominator = static_cast<float>(exact::kLargestWeight);
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    if (!at.has(i)) continue;
    const int value = static_cast<std::int8_t>(page[exact::kPageTokens * (dim + at.channel + 32 * i)]);
    state.output[i] = __fmul_rn(__int2float_rn(exact::kLargestWeight * value), factors[kSinkValueScale]);
  }
}

/// Consecutive parts of a row, of which the first `skipped` do not exist.
struct Parts {
  std::int64_t first;
  std::int32_t stride;
  std::int32_t skipped;
  std::int32_t end;

  __device__ bool has(std::int32_t i) const { return i >= skipped && i < end; }
  __device__ std::int64_t state(std::int32_t i) const {
    return first + static_cast<std::int64_t>(i - skipped) * stride;
  }
};

/// The reference that lane l's part meets, and afterwards that of the row. Parts are kUnit lanes wide.
template <int kUnit>
__device__ float reference_before(float next, int lane, float& row) {
  const std::uint32_t seen = __ballot_sync(kAllLanes, !isinf(next));
  if (isinf(row) && seen != 0) row = __shfl_sync(kAllLanes, next, __ffs(static_cast<int>(seen)) - 1);
  float before = row;
  if (!__any_sync(kAllLanes, next > __fadd_rn(row, exact::kFoldHeadroom))) return before;
  for (int k = 0; k < 32; k += kUnit) {
    const float part = __shfl_sync(kAllLanes, next, k);
    if (lane / kUnit == k / kUnit) before = row;
    if (part > __fadd_rn(row, exact::kFoldHeadroom)) row = part;
  }
  return before;
}

/// A factor with the sign as the mark of a raised reference.
__device__ float marked_factor(float before, float next) {
  const Fold by = fold_references(before, next);
  return by.raised ? -by.factor : by.factor;
}

/// A lane's share of what is known of 32 parts: the factors of its part, and its denominator.
struct Factors {
  float denominator;
  float tile;  ///< with which the tile joins its chunk
  float part;  ///< with which the part, or the chunk, joins the row
  bool raised;  ///< whether any of the 32 raises a reference
};

/// `softmax` is of the lane's part. The row's reference is brought past all of them.
template <int kUnit>
__device__ Factors factors_of(float2 softmax, int lane, float& row) {
  float reference = softmax.x;
  float tile = 1.0F;
  if constexpr (kUnit > 1) {
    float before = no_reference();
    reference = no_reference();
#pragma unroll
    for (int k = 0; k < kUnit; ++k) {
      const float next = __shfl_sync(kAllLanes, softmax.x, k, kUnit);
      if (lane % kUnit == k) before = reference;
      fold_references(reference, next);
    }
    tile = marked_factor(before, softmax.x);
  }
  const float part = marked_factor(reference_before<kUnit>(reference, lane, row), reference);
  return {softmax.y, tile, part, __any_sync(kAllLanes, tile < 0.0F || part < 0.0F) != 0};
}

/// Folds kCount parts, which are those of lanes `base` and following.
template <int kUnit, bool kRaised, int kCount, int kOutputs>
__device__ void fold_group(const Factors& factors, int base, const float (&outputs)[kCount][kOutputs],
                           RowState<kOutputs>& row) {
  RowState<kOutputs> chunk;
  chunk.clear();
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    RowState<kOutputs> next;
    next.denominator = __shfl_sync(kAllLanes, factors.denominator, base + j);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) next.output[i] = outputs[j][i];
    const float part = __shfl_sync(kAllLanes, factors.part, base + j);
    const Fold joins_row{fabsf(part), kRaised && part < 0.0F};
    if constexpr (kUnit > 1) {
      const float tile = __shfl_sync(kAllLanes, factors.tile, base + j);
      chunk.add(next, {fabsf(tile), kRaised && tile < 0.0F});
      if ((j + 1) % kUnit != 0) continue;
      row.add(chunk, joins_row);
      chunk.clear();
    } else {
      row.add(next, joins_row);
    }
  }
}

/// Appends parts to `row`: with kTiles they are tiles, whose chunks of kChunkTiles are folded first. What is
/// needed next is on its way while the present parts are folded.
template <bool kTiles, int kOutputs>
__device__ void append_parts(const FoldRow& at, const Parts& parts, RowState<kOutputs>& row) {
  constexpr int kUnit = kTiles ? exact::kChunkTiles : 1;
  constexpr int kCount = kOutputs == 1 ? 16 : 4;
  const StateView& states = at.args.states;
  const auto load_softmax = [&](std::int32_t part) {
    if (!parts.has(part)) return make_float2(no_reference(), kNothing);
    return *reinterpret_cast<const float2*>(states.softmax(parts.state(part), at.head));
  };
  const auto load_outputs = [&](std::int32_t first, float(&outputs)[kCount][kOutputs]) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const bool exists = parts.has(first + j);
      const float* from = exists ? states.output(parts.state(first + j), at.head) + at.channel : nullptr;
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) outputs[j][i] = exists && at.has(i) ? from[32 * i] : kNothing;
    }
  };
  if (parts.end == 0) return;
  float2 softmax = load_softmax(at.lane);
  float later[2][kCount][kOutputs];
  load_outputs(0, later[0]);
  load_outputs(kCount, later[1]);
  Factors factors{};
  for (std::int32_t first = 0; first < parts.end; first += kCount) {
    if (first % 32 == 0) {
      factors = factors_of<kUnit>(softmax, at.lane, row.reference);
      softmax = load_softmax(first + 32 + at.lane);
    }
    if (factors.raised) {
      fold_group<kUnit, true>(factors, first % 32, later[0], row);
    } else {
      fold_group<kUnit, false>(factors, first % 32, later[0], row);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) later[0][j][i] = later[1][j][i];
    }
    load_outputs(first + 2 * kCount, later[1]);
  }
}

/// Holds the anchors' share between floor and ceiling, and returns the share given.
template <int kOutputs>
__device__ float apply_mass_policy(const PlannedSequence& sequence, RowState<kOutputs>& anchors,
                                   const RowState<kOutputs>& context) {
  if (isinf(anchors.reference)) return 0.0F;
  if (isinf(context.reference)) return 1.0F;
  const float reference = fmaxf(anchors.reference, context.reference);
  float mine = __fmul_rn(anchors.denominator, exp2(__fsub_rn(anchors.reference, reference)));
  const float others = __fmul_rn(context.denominator, exp2(__fsub_rn(context.reference, reference)));
  float odds = -1.0F;
  if (mine < __fmul_rn(sequence.floor_odds, others)) odds = sequence.floor_odds;
  if (mine > __fmul_rn(sequence.ceiling_odds, others)) odds = sequence.ceiling_odds;
  if (odds >= 0.0F) {
    const float wanted = __fmul_rn(context.denominator, odds);
    const float factor = __fdiv_rn(wanted, anchors.denominator);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) anchors.output[i] = __fmul_rn(anchors.output[i], factor);
    anchors.denominator = wanted;
    anchors.reference = context.reference;
    mine = __fmul_rn(odds, others);
  }
  return __fdiv_rn(mine, __fadd_rn(mine, others));
}

/// Sink, then anchors, then context.
template <int kOutputs>
__global__ void __launch_bounds__(32 * kFoldWarps) fold_kernel(const __grid_constant__ ColumnsArgs args) {
  const std::int32_t heads = args.attention.heads;
  const std::int32_t dim = args.attention.head_dim;
  const std::int32_t slices = (dim + 32 * kOutputs - 1) / (32 * kOutputs);
  const std::int64_t index =
      static_cast<std::int64_t>(blockIdx.x) * kFoldWarps + static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t row_index = index / slices;
  const std::int32_t slice = static_cast<std::int32_t>(index % slices);
  const bool exists = row_index / heads < args.plan.header->queries;
  const PlannedQuery query = args.plan.queries()[exists ? row_index / heads : 0];
  const PlannedSequence sequence = args.plan.sequences()[query.sequence];
  const FoldRow at{args, query, static_cast<std::int32_t>(row_index % heads), 32 * kOutputs * slice + lane, lane};
  RowState<kOutputs> state;
  state.clear();
  const bool sink_seen = args.attention.window == 0 || query.position < args.attention.window;
  if (exists && sink_seen) attend_sink(at, sequence.sink_block, state);
  // Here the items' states are complete.
  wait_for_earlier_kernels();
  let_later_kernels_start();
  if (index == 0 && lane == 0) *args.taken = 0;
  if (!exists) return;

  RowState<kOutputs> anchors;
  anchors.clear();
  append_parts<false>(at, {query.anchor_state, query.anchor_stride, 0, query.anchor_parts}, anchors);
  RowState<kOutputs> context;
  context.clear();
  append_parts<false>(at, {query.state, query.state_stride, 0, query.whole_parts}, context);
  append_parts<true>(at,
                     {query.state + static_cast<std::int64_t>(query.whole_parts) * query.state_stride,
                      query.state_stride, query.skipped_tiles, query.skipped_tiles + query.tile_parts},
                     context);
  const float mass = apply_mass_policy(sequence, anchors, context);
  state.append(anchors);
  state.append(context);
  const std::int64_t row = static_cast<std::int64_t>(query.token) * heads + at.head;
  if (slice == 0 && lane == 0) args.attention.anchor_mass[row] = mass;
  const float inverse = __frcp_rn(state.denominator);
  const float* v_scale = args.attention.scales.v_scale + at.kv_head() * dim;
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const std::int32_t channel = at.channel + 32 * i;
    if (channel >= dim) continue;
    args.attention.out[row * dim + channel] = __fmul_rn(__fmul_rn(state.output[i], inverse), v_scale[channel]);
  }
}

template <int kOutputs>
void launch(const ColumnsArgs& args, std::int64_t rows, Stream stream) {
  const std::int64_t slices = (args.attention.head_dim + 32 * kOutputs - 1) / (32 * kOutputs);
  const std::int64_t blocks = (rows * slices + kFoldWarps - 1) / kFoldWarps;
  launch_early({dim3(static_cast<unsigned>(blocks)), 32 * kFoldWarps, 0, 1}, stream, fold_kernel<kOutputs>, args);
}

}  // namespace

void launch_fold(const ColumnsArgs& args, std::int32_t queries, std::int32_t multiprocessors, Stream stream) {
  constexpr std::int64_t kWarpsThatFit = 16;  // beside the kernel before, on each multiprocessor
  const std::int64_t rows = static_cast<std::int64_t>(queries) * args.attention.heads;
  const std::int64_t slices = (args.attention.head_dim + 31) / 32;
  if (rows * slices <= kWarpsThatFit * multiprocessors) {
    launch<1>(args, rows, stream);
  } else {
    launch<4>(args, rows, stream);
  }
}

}  // namespace fieldprint::backend::cuda
