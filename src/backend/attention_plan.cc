#include "backend/attention_plan.h"

#include <algorithm>

#include "backend/shared_preface.h"

namespace fieldprint::backend {
namespace {

// The rows that the kernels take through a page at once, so that no item leaves a few over; and few enough
// queries that threads share a prefill.
constexpr std::int32_t kRowsPerItem = 64;
constexpr std::int32_t kMostQueries = 32;

}  // namespace

AttentionPlan plan_attention(std::span<const AttentionSequence> sequences, std::int32_t heads,
                             std::int32_t kv_heads) {
  const std::int32_t per_item = std::clamp(kRowsPerItem / (heads / kv_heads), 1, kMostQueries);
  AttentionPlan plan;
  const std::int32_t count = static_cast<std::int32_t>(sequences.size());
  for (std::int32_t first = 0; first < count;) {
    const std::int32_t last =
        static_cast<std::int32_t>(shared_preface_end(sequences, static_cast<std::size_t>(first)));
    std::int32_t queries = 0;
    for (std::int32_t s = first; s < last; ++s) queries += sequences[static_cast<std::size_t>(s)].queries;
    for (std::int32_t head = 0; head < kv_heads; ++head) {
      for (std::int32_t begin = 0; begin < queries; begin += per_item) {
        plan.preface.push_back({first, last - first, head, begin, std::min(begin + per_item, queries)});
      }
    }
    first = last;
  }
  for (std::int32_t s = 0; s < count; ++s) {
    const std::int32_t queries = sequences[static_cast<std::size_t>(s)].queries;
    for (std::int32_t head = 0; head < kv_heads; ++head) {
      for (std::int32_t begin = 0; begin < queries; begin += per_item) {
        plan.context.push_back({s, head, begin, std::min(begin + per_item, queries)});
      }
    }
  }
  // The last queries of a long prefill see the most tokens: start with them, so that no thread ends alone.
  std::reverse(plan.context.begin(), plan.context.end());
  return plan;
}

}  // namespace fieldprint::backend
