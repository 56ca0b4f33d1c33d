#pragma once

#include <cstdint>

#include "backend/cuda/math.cuh"
#include "backend/cuda/plan.h"
#include "backend/ops.h"

/// What the attention kernels share: the plan as a kernel sees it, partial states, and their merge.
namespace fieldprint::backend::cuda {

/// Partial states: for each state [heads][D] outputs, then [heads][2] maximum and denominator.
struct StateView {
  float* data;
  std::int32_t heads;
  std::int32_t head_dim;

  __device__ float* output(std::int64_t state, std::int32_t head) const {
    return data + state * heads * (head_dim + 2) + static_cast<std::int64_t>(head) * head_dim;
  }
  __device__ float* softmax(std::int64_t state, std::int32_t head) const {
    return data + state * heads * (head_dim + 2) + static_cast<std::int64_t>(heads) * head_dim + 2 * head;
  }
};

struct PlanView {
  const PlanHeader* header;

  template <typename T>
  __device__ const T* at(std::int32_t offset) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(header) + offset);
  }
  __device__ const PlannedSequence* sequences() const { return at<PlannedSequence>(header->sequences_at); }
  __device__ const PlannedQuery* queries() const { return at<PlannedQuery>(header->queries_at); }
  __device__ const PlannedItem* items() const { return at<PlannedItem>(header->items_at); }
  __device__ const PlannedItem* row_items() const { return at<PlannedItem>(header->row_items_at); }
  __device__ const std::int32_t* blocks() const { return at<std::int32_t>(header->blocks_at); }
};

/// The empty state has maximum -inf and -0 elsewhere: -0 is what leaves every float as it is when added, so
/// that a merge needs no case for empty states.
__device__ __forceinline__ float no_maximum() { return bits_to_float(0xFF800000U); }
constexpr float kNothing = -0.0F;

/// Factors of a merge of maximum `mine` with the next one: of the two, one is exp2(0) = 1.
struct MergeFactors {
  float maximum;
  float mine;
  float next;
};
__device__ __forceinline__ MergeFactors merge_factors(float mine, float next) {
  const bool raised = next > mine;
  const float smaller = exp2(-fabsf(__fsub_rn(next, mine)));
  return {raised ? next : mine, raised ? smaller : 1.0F, raised ? 1.0F : smaller};
}

__device__ __forceinline__ float merge(float mine, float next, const MergeFactors& factors) {
  return __fmaf_rn(mine, factors.mine, __fmul_rn(next, factors.next));
}

/// Tokens of the item's segment that a query sees.
struct SeenRange {
  std::int32_t first;
  std::int32_t last;
};
__device__ __forceinline__ SeenRange seen_range(const PlanView& plan, std::int32_t window,
                                                const PlannedItem& item, const PlannedQuery& query) {
  const std::int32_t anchors = plan.sequences()[query.sequence].anchor_tokens;
  if (item.context == 0) return {0, min(query.position, anchors)};
  return {window > 0 ? max(query.position - window - anchors, 0) : 0, max(query.position - anchors, 0)};
}

/// Bytes of one page, as page_bytes() of ops.h.
__device__ __forceinline__ std::int32_t page_size(std::int32_t head_dim) {
  return exact::kPageTokens * (2 * head_dim + 4);
}

__device__ __forceinline__ float bf16_low(std::uint32_t pair) { return bits_to_float(pair << 16); }
__device__ __forceinline__ float bf16_high(std::uint32_t pair) { return bits_to_float(pair & 0xFFFF0000U); }

}  // namespace fieldprint::backend::cuda
