#include "backend/attention_plan.h"

#include <algorithm>

#include "exact/format.h"

namespace fieldprint::backend {
namespace {

// Enough queries to pay for unpacking a page, few enough that threads share a prefill.
constexpr std::int32_t kQueriesPerItem = 32;

bool share_preface(const AttentionSequence& a, const AttentionSequence& b) {
  if (a.anchor_tokens != b.anchor_tokens) return false;
  const std::int32_t blocks = 1 + (a.anchor_tokens + exact::kPageTokens - 1) / exact::kPageTokens;
  return std::equal(a.blocks, a.blocks + blocks, b.blocks);
}

}  // namespace

AttentionPlan plan_attention(std::span<const AttentionSequence> sequences, std::int32_t kv_heads) {
  AttentionPlan plan;
  const std::int32_t count = static_cast<std::int32_t>(sequences.size());
  for (std::int32_t first = 0; first < count;) {
    std::int32_t last = first;
    std::int32_t queries = 0;
    while (last < count && share_preface(sequences[static_cast<std::size_t>(first)],
                                         sequences[static_cast<std::size_t>(last)])) {
      queries += sequences[static_cast<std::size_t>(last)].queries;
      ++last;
    }
    for (std::int32_t head = 0; head < kv_heads; ++head) {
      for (std::int32_t begin = 0; begin < queries; begin += kQueriesPerItem) {
        plan.preface.push_back(
            {first, last - first, head, begin, std::min(begin + kQueriesPerItem, queries)});
      }
    }
    first = last;
  }
  for (std::int32_t s = 0; s < count; ++s) {
    const std::int32_t queries = sequences[static_cast<std::size_t>(s)].queries;
    for (std::int32_t head = 0; head < kv_heads; ++head) {
      for (std::int32_t begin = 0; begin < queries; begin += kQueriesPerItem) {
        plan.context.push_back({s, head, begin, std::min(begin + kQueriesPerItem, queries)});
      }
    }
  }
  // The last queries of a long prefill see the most tokens: start with them, so that no thread ends alone.
  std::reverse(plan.context.begin(), plan.context.end());
  return plan;
}

}  // namespace fieldprint::backend
