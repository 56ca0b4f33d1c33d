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
  __device__ void append(const RowState<kOutputs>& next) {
    add(next, fold_references(reference, next.reference));
  }
};

/// One (query, head), and the lane's first channel.
struct FoldRow {
  const ColumnsArgs& args;
  const PlannedQuery& query;
  std::int32_t head;
  std::int32_t first_channel;
  int lane;

  __device__ std::int32_t kv_head() const { return head / (args.attention.heads / args.attention.kv_heads); }
  __device__ bool has(int i) const { return first_channel + 32 * i < args.attention.head_dim; }
  /// The lane's i-th, or the last there is.
  __device__ std::int32_t channel(int i) const {
    return min(first_channel + 32 * i, args.attention.head_dim - 1);
  }
};

/// The sink: one token, whose scales have factors of their own.
template <int kOutputs>
__device__ void attend_sink(const FoldRow& at, RowState<kOutputs>& state) {
  const AttentionArgs& args = at.args.attention;
  const std::int32_t dim = args.head_dim;
  const std::uint8_t* page = args.kv.pool + at.query.sink_block * args.kv.block_stride +
                             args.kv.layer_offset + static_cast<std::int64_t>(at.kv_head()) * page_size(dim);
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
    const int value = static_cast<std::int8_t>(page[exact::kPageTokens * (dim + at.channel(i))]);
    state.output[i] = __fmul_rn(__int2float_rn(exact::kLargestWeight * value), factors[kSinkValueScale]);
  }
}

/// Consecutive parts of a row, of which the first `skipped` do not exist. With `tiles` they are tiles of the
/// context, of which kChunkTiles are a chunk that is folded on its own.
struct Parts {
  const float* outputs;  ///< of part 0
  const float* softmax;
  std::int32_t stride;  ///< floats
  std::int32_t skipped;
  std::int32_t count;
  bool tiles;

  __device__ Parts(const FoldRow& at, std::int64_t state, std::int32_t state_stride, std::int32_t parts,
                   std::int32_t skipped_parts, bool are_tiles)
      : outputs(at.args.states.output(state, at.head)),
        softmax(at.args.states.softmax(state, at.head)),
        stride(state_stride * static_cast<std::int32_t>(at.args.states.floats())),
        skipped(skipped_parts),
        count(parts),
        tiles(are_tiles) {
    outputs -= static_cast<std::int64_t>(skipped) * stride;
    softmax -= static_cast<std::int64_t>(skipped) * stride;
  }

  __device__ std::int32_t end() const { return count == 0 ? 0 : skipped + count; }
  __device__ bool has(std::int32_t i) const {
    return static_cast<std::uint32_t>(i - skipped) < static_cast<std::uint32_t>(count);
  }
  __device__ bool ends_chunk(std::int32_t i) const { return !tiles || (i + 1) % exact::kChunkTiles == 0; }
};

/// The reference that the lane's part meets; that of the row is brought past all of them. Neighbouring lanes,
/// `unit` at a time, have the same part.
__device__ float reference_before(float next, int unit, int lane, float& row) {
  const std::uint32_t seen = __ballot_sync(kAllLanes, !isinf(next));
  if (isinf(row) && seen != 0) row = __shfl_sync(kAllLanes, next, __ffs(static_cast<int>(seen)) - 1);
  float before = row;
  if (!__any_sync(kAllLanes, next > __fadd_rn(row, exact::kFoldHeadroom))) return before;
#pragma unroll 1
  for (int k = 0; k < 32; k += unit) {
    const float part = __shfl_sync(kAllLanes, next, k);
    if (lane >= k) before = row;
    if (part > __fadd_rn(row, exact::kFoldHeadroom)) row = part;
  }
  return before;
}

/// A factor with the sign as the mark of a raised reference.
__device__ float marked_factor(float before, float next) {
  const Fold by = fold_references(before, next);
  return by.raised ? -by.factor : by.factor;
}

/// What is known of a part: its denominator, and the factors with which it joins its chunk and the chunk the
/// row.
struct alignas(16) Factors {
  float denominator;
  float part;
  float chunk;

  __device__ bool raise() const { return part < 0.0F || chunk < 0.0F; }
};

/// `softmax` is of the lane's part. The row's reference is brought past those of all lanes.
__device__ Factors factors_of(float2 softmax, bool tiles, int lane, float& row) {
  float reference = softmax.x;
  float part = 1.0F;
  if (tiles) {
    float before = no_reference();
    reference = no_reference();
#pragma unroll
    for (int k = 0; k < exact::kChunkTiles; ++k) {
      const float next = __shfl_sync(kAllLanes, softmax.x, k, exact::kChunkTiles);
      if (lane % exact::kChunkTiles == k) before = reference;
      fold_references(reference, next);
    }
    part = marked_factor(before, softmax.x);
  }
  const float before = reference_before(reference, tiles ? exact::kChunkTiles : 1, lane, row);
  return {softmax.y, part, marked_factor(before, reference)};
}

/// Appends parts to a row.
template <int kOutputs>
struct Appender {
  static constexpr int kCount = kOutputs == 1 ? 32 : 4;  // parts that are on their way together
  static constexpr int kStep = 4;
  using Outputs = float[kCount][kOutputs];

  const FoldRow& at;
  const Parts& parts;
  RowState<kOutputs>& row;
  Factors* factors;  // of 32 parts, in shared memory
  RowState<kOutputs> chunk;
  bool raised;

  __device__ void load(std::int32_t part, float (&output)[kOutputs]) const {
    const float* from = parts.outputs + static_cast<std::int64_t>(part) * parts.stride;
    const bool exists = parts.has(part);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      output[i] = kNothing;
      if (exists) output[i] = from[at.channel(i)];
    }
  }
  __device__ void load(std::int32_t first, Outputs& outputs) const {
#pragma unroll
    for (int j = 0; j < kCount; j += kStep) {
      if (first + j >= parts.end()) break;
#pragma unroll
      for (int k = j; k < j + kStep; ++k) load(first + k, outputs[k]);
    }
  }

  __device__ void find_factors(std::int32_t first) {
    float2 softmax = make_float2(no_reference(), kNothing);
    const std::int32_t part = first + at.lane;
    if (parts.has(part)) {
      softmax =
          *reinterpret_cast<const float2*>(parts.softmax + static_cast<std::int64_t>(part) * parts.stride);
    }
    const Factors mine = factors_of(softmax, parts.tiles, at.lane, row.reference);
    __syncwarp();
    factors[at.lane] = mine;
    __syncwarp();
    raised = __any_sync(kAllLanes, mine.raise());
  }

  template <bool kRaised>
  __device__ void append(std::int32_t part, const float (&output)[kOutputs]) {
    const Factors by = factors[part % 32];
    RowState<kOutputs> next;
    next.denominator = by.denominator;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) next.output[i] = output[i];
    chunk.add(next, {fabsf(by.part), kRaised && by.part < 0.0F});
    if (!parts.ends_chunk(part)) return;
    row.add(chunk, {fabsf(by.chunk), kRaised && by.chunk < 0.0F});
    chunk.clear();
  }

  /// The parts from `first` on, up to the end of a chunk.
  __device__ void append(std::int32_t first, const Outputs& outputs) {
    if (first % 32 == 0) find_factors(first);
    const std::int32_t end = min(first + kCount, (parts.end() + kStep - 1) / kStep * kStep);
    if (raised) {
      // So seldom that it need not be fast.
#pragma unroll 1
      for (std::int32_t part = first; part < end; ++part) {
        float output[kOutputs];
        load(part, output);
        append<true>(part, output);
      }
      return;
    }
#pragma unroll
    for (int j = 0; j < kCount; j += kStep) {
      if (first + j >= end) break;
#pragma unroll
      for (int k = j; k < j + kStep; ++k) append<false>(first + k, outputs[k]);
    }
  }

  /// Of two buffers one is on its way while the other is used.
  __device__ void run() {
    chunk.clear();
    Outputs a;
    Outputs b;
    load(0, a);
#pragma unroll 1
    for (std::int32_t first = 0; first < parts.end(); first += 2 * kCount) {
      load(first + kCount, b);
      append(first, a);
      if (first + kCount >= parts.end()) break;
      load(first + 2 * kCount, a);
      append(first + kCount, b);
    }
  }
};

/// Holds the anchors' share between floor and ceiling, and returns the share given.
template <int kOutputs>
__device__ float apply_mass_policy(const PlannedQuery& query, RowState<kOutputs>& anchors,
                                   const RowState<kOutputs>& context) {
  if (isinf(anchors.reference)) return 0.0F;
  if (isinf(context.reference)) return 1.0F;
  const float reference = fmaxf(anchors.reference, context.reference);
  float mine = __fmul_rn(anchors.denominator, exp2(__fsub_rn(anchors.reference, reference)));
  const float others = __fmul_rn(context.denominator, exp2(__fsub_rn(context.reference, reference)));
  float odds = -1.0F;
  if (mine < __fmul_rn(query.floor_odds, others)) odds = query.floor_odds;
  if (mine > __fmul_rn(query.ceiling_odds, others)) odds = query.ceiling_odds;
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
__global__ void __launch_bounds__(32 * kFoldWarps, kOutputs == 1 ? 3 : 5)
    fold_kernel(const __grid_constant__ ColumnsArgs args) {
  let_later_kernels_start();
  __shared__ Factors factors[kFoldWarps][32];
  const std::int32_t heads = args.attention.heads;
  const std::int32_t dim = args.attention.head_dim;
  const std::int32_t slices = (dim + 32 * kOutputs - 1) / (32 * kOutputs);
  const std::int64_t index =
      static_cast<std::int64_t>(blockIdx.x) * kFoldWarps + static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const std::int64_t row_index = index / slices;
  const std::int32_t slice = static_cast<std::int32_t>(index % slices);
  const bool exists = row_index / heads < args.queries;
  const PlannedQuery query = args.plan.queries()[exists ? row_index / heads : 0];
  const FoldRow at{args, query, static_cast<std::int32_t>(row_index % heads), 32 * kOutputs * slice + lane,
                   lane};
  RowState<kOutputs> state;
  state.clear();
  const bool sink_seen = args.attention.window == 0 || query.position < args.attention.window;
  if (exists && sink_seen) attend_sink(at, state);
  // Here the items' states are complete.
  wait_for_earlier_kernels();
  if (index == 0 && lane == 0) *args.taken = 0;
  if (!exists || query.whole_parts < 0) return;

  // One loop over what has parts, so that the code is there once.
  RowState<kOutputs> anchors;
  RowState<kOutputs> context;
  context.clear();
#pragma unroll 1
  for (int i = 0; i < 3; ++i) {
    const bool is_anchors = i == 0;
    const bool is_tiles = i == 2;
    const std::int64_t state = is_anchors ? query.anchor_state : query.state;
    const std::int64_t before =
        is_tiles ? static_cast<std::int64_t>(query.whole_parts) * query.state_stride : 0;
    const Parts parts(at, state + before, is_anchors ? query.anchor_stride : query.state_stride,
                      is_anchors ? query.anchor_parts
                      : is_tiles ? query.tile_parts
                                 : query.whole_parts,
                      is_tiles ? query.skipped_tiles : 0, is_tiles);
    Appender<kOutputs>{at, parts, context, factors[threadIdx.x / 32]}.run();
    if (i > 0) continue;
    anchors = context;
    context.clear();
  }
  const float mass = apply_mass_policy(query, anchors, context);
  state.append(anchors);
  state.append(context);
  const std::int64_t row = static_cast<std::int64_t>(query.token) * heads + at.head;
  if (slice == 0 && lane == 0) args.attention.anchor_mass[row] = mass;
  const float inverse = __frcp_rn(state.denominator);
  const float* v_scale = args.attention.scales.v_scale + at.kv_head() * dim;
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    if (!at.has(i)) continue;
    args.attention.out[row * dim + at.channel(i)] =
        __fmul_rn(__fmul_rn(state.output[i], inverse), v_scale[at.channel(i)]);
  }
}

template <int kOutputs>
void launch(const ColumnsArgs& args, std::int64_t rows, bool after_items, Stream stream) {
  const std::int64_t slices = (args.attention.head_dim + 32 * kOutputs - 1) / (32 * kOutputs);
  const auto blocks = static_cast<unsigned>((rows * slices + kFoldWarps - 1) / kFoldWarps);
  if (after_items) {
    launch_early({dim3(blocks), 32 * kFoldWarps, 0, 1}, stream, fold_kernel<kOutputs>, args);
    return;
  }
  fold_kernel<kOutputs><<<blocks, 32 * kFoldWarps, 0, stream>>>(args);
  check_launch("attention fold");
}

}  // namespace

void launch_fold(const ColumnsArgs& args, std::int32_t multiprocessors, bool after_items, Stream stream) {
  constexpr std::int64_t kWarpsThatFit = 16;  // beside the kernel before, on each multiprocessor
  const std::int64_t rows = static_cast<std::int64_t>(args.queries) * args.attention.heads;
  const std::int64_t slices = (args.attention.head_dim + 31) / 32;
  if (rows * slices <= kWarpsThatFit * multiprocessors) {
    launch<1>(args, rows, after_items, stream);
  } else {
    launch<4>(args, rows, after_items, stream);
  }
}

}  // namespace fieldprint::backend::cuda
