#pragma once

#include "backend/cuda/attention_columns.cuh"

/// What a warp of the fold does in a round: it brings some parts of a row and appends them to the row's
/// state.
namespace fieldprint::backend::cuda {
namespace {

/// A row's state: a lane has neighbouring channels.
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
  __device__ void add(float next_denominator, const float (&next)[kOutputs], const Fold& by) {
    denominator = fold(denominator, next_denominator, by);
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) output[i] = fold(output[i], next[i], by);
  }
  __device__ void append(const RowState<kOutputs>& next) {
    add(next.denominator, next.output, fold_references(reference, next.reference));
  }
};

/// A lane's channels of a partial state.
template <int kOutputs>
__device__ void load_outputs(const float* from, float (&output)[kOutputs]) {
  if constexpr (kOutputs == 4) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    output[0] = x.x;
    output[1] = x.y;
    output[2] = x.z;
    output[3] = x.w;
  } else {
    output[0] = *from;
  }
}

/// One (query, head), and the lane's first channel.
template <int kOutputs>
struct FoldRow {
  const ColumnsArgs& args;
  const PlannedQuery& query;
  std::int32_t head;
  std::int32_t first_channel;
  int lane;

  __device__ std::int32_t kv_head() const { return head / (args.attention.heads / args.attention.kv_heads); }
  /// Head sizes are multiples of kOutputs.
  __device__ bool has_channels() const { return first_channel < args.attention.head_dim; }
  /// The lane's i-th, or one that there is.
  __device__ std::int32_t channel(int i) const { return has_channels() ? first_channel + i : 0; }
};

/// Consecutive parts of a row, of which the first `skipped` do not exist. With `tiles` they are tiles of the
/// context, of which kChunkTiles are a chunk that is folded on its own.
struct Parts {
  std::int64_t state = 0;  ///< of part 0
  std::int32_t stride = 0;
  std::int32_t skipped = 0;
  std::int32_t count = 0;
  bool tiles = false;

  __device__ std::int32_t end() const { return count == 0 ? 0 : skipped + count; }
  __device__ bool has(std::int32_t i) const {
    return static_cast<std::uint32_t>(i - skipped) < static_cast<std::uint32_t>(count);
  }
  __device__ std::int64_t state_of(std::int32_t i) const { return state + std::int64_t{i} * stride; }
};

/// The rounds of a row: of its anchors, of its chunks and of its tiles. A single part of the anchors is their
/// state as it is: with kDirect it has no round.
template <int kParts, bool kDirect>
struct Rounds {
  const PlannedQuery& query;

  __device__ static std::int32_t of(std::int32_t parts) { return (parts + kParts - 1) / kParts; }
  __device__ bool has_anchor_state() const { return kDirect && query.anchor_parts == 1; }
  __device__ std::int32_t of_anchors() const { return has_anchor_state() ? 0 : of(query.anchor_parts); }
  __device__ std::int32_t before_tiles() const { return of_anchors() + of(query.whole_parts); }
  /// A row without parts has a round too, in which it is finished.
  __device__ std::int32_t count() const {
    const std::int32_t tiles = query.tile_parts == 0 ? 0 : query.skipped_tiles + query.tile_parts;
    return max(before_tiles() + of(tiles), 1);
  }

  /// The parts that a round is of, and the first of the round.
  __device__ Parts parts_of(std::int32_t round, std::int32_t& first) const {
    if (round < of_anchors()) {
      first = round * kParts;
      return {query.anchor_state, query.anchor_stride, 0, query.anchor_parts, false};
    }
    if (round < before_tiles()) {
      first = (round - of_anchors()) * kParts;
      return {query.state, query.state_stride, 0, query.whole_parts, false};
    }
    first = (round - before_tiles()) * kParts;
    const std::int64_t before = query.whole_parts - query.skipped_tiles;
    return {query.state + before * query.state_stride, query.state_stride, query.skipped_tiles,
            query.tile_parts, true};
  }
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

/// What is known of a part: its denominator and the factor with which it joins its chunk; and of its link of
/// the row, which is the part or its chunk, the same.
struct alignas(16) Factors {
  float denominator;
  float part;
  float link_denominator;
  float link;
};

/// The parts of a round, and the links of the row that they make.
template <int kOutputs>
struct Round {
  static constexpr int kParts = 32 / kOutputs;
  static constexpr int kStep = exact::kChunkTiles;
  using Outputs = float[kParts][kOutputs];

  const FoldRow<kOutputs>& at;
  Parts parts;
  std::int32_t first;
  Factors* factors;  ///< of the warp's parts, in shared memory
  Outputs outputs;   ///< of tiles' links the last of each chunk
  float2 softmax;    ///< of the lane's part
  float reference;   ///< of its link
  float row_before;  ///< the reference that the link meets
  bool raised;

  __device__ void load(std::int32_t part, float (&output)[kOutputs]) const {
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) output[i] = kNothing;
    if (!parts.has(part) || !at.has_channels()) return;
    load_outputs(at.args.states.output(parts.state_of(part), at.head) + at.first_channel, output);
  }

  __device__ void load() {
    softmax = make_float2(no_reference(), kNothing);
    if (at.lane < kParts && parts.has(first + at.lane)) {
      const float* from = at.args.states.softmax(parts.state_of(first + at.lane), at.head);
      softmax = *reinterpret_cast<const float2*>(from);
    }
#pragma unroll
    for (int j = 0; j < kParts; j += kStep) {
      if (first + j >= parts.end()) break;
#pragma unroll
      for (int k = j; k < j + kStep; ++k) load(first + k, outputs[k]);
    }
  }

  /// All that does not need the row: tiles become chunks.
  __device__ void prepare() {
    float denominator = softmax.y;
    float factor = 1.0F;
    reference = softmax.x;
    if (parts.tiles) {
      Fold mine{1.0F, false};
      reference = no_reference();
      denominator = kNothing;
#pragma unroll
      for (int k = 0; k < kStep; ++k) {
        const Fold by = fold_references(reference, __shfl_sync(kAllLanes, softmax.x, k, kStep));
        denominator = fold(denominator, __shfl_sync(kAllLanes, softmax.y, k, kStep), by);
        if (at.lane % kStep == k) mine = by;
      }
      factor = marked(mine);
    }
    __syncwarp();
    factors[at.lane] = {softmax.y, factor, denominator, 1.0F};
    __syncwarp();
    raised = __any_sync(kAllLanes, factor < 0.0F) != 0;
    if (!parts.tiles || raised) return;
#pragma unroll
    for (int j = 0; j < kParts; j += kStep) {
      if (first + j >= parts.end()) break;
      float(&link)[kOutputs] = outputs[j + kStep - 1];
      float sum[kOutputs];
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) sum[i] = kNothing;
#pragma unroll
      for (int k = j; k < j + kStep; ++k) {
        const float by = factors[k].part;
#pragma unroll
        for (int i = 0; i < kOutputs; ++i) sum[i] = __fmaf_rn(outputs[k][i], by, sum[i]);
      }
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) link[i] = sum[i];
    }
  }

  /// Brings the reference of the row past the round.
  __device__ void pass(float& row_reference) {
    row_before = reference_before(reference, parts.tiles ? kStep : 1, at.lane, row_reference);
  }
  /// The factors with which the links join the row.
  __device__ void find_links() {
    const float link = marked(fold_references(row_before, reference));
    factors[at.lane].link = link;
    __syncwarp();
    raised |= __any_sync(kAllLanes, link < 0.0F) != 0;
  }

  /// Appends the round to the row, but for its reference.
  __device__ void append_to(RowState<kOutputs>& row) const {
    if (raised) {
      append_raised(row);
    } else if (parts.tiles) {
      append_links<kStep>(row);
    } else {
      append_links<1>(row);
    }
  }

 private:
  /// A factor with the sign as the mark of a raised reference.
  __device__ static float marked(const Fold& by) { return by.raised ? -by.factor : by.factor; }
  __device__ static Fold fold_of(float marked) { return {fabsf(marked), marked < 0.0F}; }

  /// Every kEvery-th of the outputs is a link.
  template <int kEvery>
  __device__ void append_links(RowState<kOutputs>& row) const {
#pragma unroll
    for (int j = 0; j < kParts; j += kStep) {
      if (first + j >= parts.end()) break;
#pragma unroll
      for (int k = j + kEvery - 1; k < j + kStep; k += kEvery) {
        const float2 by = *reinterpret_cast<const float2*>(&factors[k].link_denominator);
        row.add(by.x, outputs[k], {by.y, false});
      }
    }
  }

  /// So seldom that it need not be fast.
  __device__ void append_raised(RowState<kOutputs>& row) const {
    RowState<kOutputs> chunk;
    chunk.clear();
    const std::int32_t end = min(first + kParts, (parts.end() + kStep - 1) / kStep * kStep);
#pragma unroll 1
    for (std::int32_t part = first; part < end; ++part) {
      float output[kOutputs];
      load(part, output);
      const Factors by = factors[part - first];
      chunk.add(by.denominator, output, fold_of(by.part));
      if (parts.tiles && (part + 1) % kStep != 0) continue;
      row.add(chunk.denominator, chunk.output, fold_of(by.link));
      chunk.clear();
    }
  }
};

}  // namespace
}  // namespace fieldprint::backend::cuda
