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

  /// Of one state, as state_floats() of plan.h.
  __device__ std::int64_t floats() const {
    return (static_cast<std::int64_t>(heads) * (head_dim + 2) + 3) / 4 * 4;
  }
  __device__ float* output(std::int64_t state, std::int32_t head) const {
    return data + state * floats() + static_cast<std::int64_t>(head) * head_dim;
  }
  __device__ float* softmax(std::int64_t state, std::int32_t head) const {
    return data + state * floats() + static_cast<std::int64_t>(heads) * head_dim + 2 * head;
  }
};

struct PlanView {
  const PlanHeader* header;
  std::int32_t items_at;  ///< known to the host, so that items are found without a look at the header

  template <typename T>
  __device__ const T* at(std::int32_t offset) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(header) + offset);
  }
  __device__ const PlannedQuery* queries() const { return reinterpret_cast<const PlannedQuery*>(header + 1); }
  __device__ const PlannedItem* items() const { return at<PlannedItem>(items_at); }
  __device__ const std::int32_t* row_starts() const { return at<std::int32_t>(header->row_starts_at); }
  __device__ const PlannedTask* row_tasks() const { return at<PlannedTask>(header->row_tasks_at); }
  __device__ const std::int32_t* blocks() const { return at<std::int32_t>(header->blocks_at); }
};

/// The empty state has reference -inf and -0 elsewhere: -0 is what leaves every float as it is when added, so
/// that a fold needs no case for empty states.
__device__ __forceinline__ float no_reference() { return bits_to_float(0xFF800000U); }
constexpr float kNothing = -0.0F;

/// How the next part of a row joins it: the reference stays, or is raised to the part's.
struct Fold {
  float factor;  ///< positive, of whichever has the smaller reference
  bool raised;
};
/// Of the references of a row and its next part; the row's is brought forward. Where the row is empty it
/// takes the part's: then the factor is 1, and the fold copies.
__device__ __forceinline__ Fold fold_references(float& mine, float next) {
  if (isinf(mine)) mine = next;
  const bool raised = next > __fadd_rn(mine, exact::kFoldHeadroom);
  const float factor = exp2(raised ? __fsub_rn(mine, next) : __fsub_rn(next, mine));
  if (raised) mine = next;
  return {factor, raised};
}

__device__ __forceinline__ float fold(float mine, float next, const Fold& by) {
  return __fmaf_rn(by.raised ? mine : next, by.factor, by.raised ? next : mine);
}

/// Tokens of the item's segment that a query sees.
struct SeenRange {
  std::int32_t first;
  std::int32_t last;
};
__device__ __forceinline__ SeenRange seen_range(std::int32_t window, const PlannedItem& item,
                                                const PlannedQuery& query) {
  const std::int32_t anchors = query.anchor_tokens;
  if (item.context == 0) return {0, min(query.position, anchors)};
  return {window > 0 ? max(query.position - window - anchors, 0) : 0, max(query.position - anchors, 0)};
}

/// Bytes of one page, as page_bytes() of ops.h.
__device__ __forceinline__ std::int32_t page_size(std::int32_t head_dim) {
  return 2 * exact::kPageTokens * head_dim;
}

/// What a score of 1 stands for in log2, for a query with this step.
__device__ __forceinline__ float score_unit(std::int32_t step) {
  return __fmul_rn(__int2float_rn(step), exact::kStepUnit);
}

}  // namespace fieldprint::backend::cuda
