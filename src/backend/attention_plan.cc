#include "backend/attention_plan.h"

#include <algorithm>

#include "exact/format.h"

namespace fieldprint::backend {
namespace {

// Enough queries to pay for unpacking a page, few enough that threads share a prefill.
constexpr std::int32_t kQueriesPerItem = 32;

/// How many blocks of sink and anchors the last query sees; the table may end after them.
std::int32_t preface_blocks(const AttentionSequence& sequence) {
  const std::int32_t last = sequence.first_position + sequence.queries - 1;
  const std::int32_t seen = std::min(last, sequence.anchor_tokens);
  return 1 + (seen + exact::kPageTokens - 1) / exact::kPageTokens;
}

bool share_preface(const AttentionSequence& a, const AttentionSequence& b) {
  if (a.anchor_tokens != b.anchor_tokens) return false;
  return std::equal(a.blocks, a.blocks + std::min(preface_blocks(a), preface_blocks(b)), b.blocks);
}

}  // namespace

AttentionPlan plan_attention(std::span<const AttentionSequence> sequences, std::int32_t kv_heads) {
  AttentionPlan plan;
  const std::int32_t count = static_cast<std::int32_t>(sequences.size());
  for (std::int32_t first = 0; first < count;) {
    std::int32_t last = first;
    std::int32_t queries = 0;
    // Compared with the one that sees most: what two see alike, they may go on from differently.
    const AttentionSequence* longest = &sequences[static_cast<std::size_t>(first)];
    while (last < count && share_preface(*longest, sequences[static_cast<std::size_t>(last)])) {
      const AttentionSequence& member = sequences[static_cast<std::size_t>(last)];
      if (preface_blocks(member) > preface_blocks(*longest)) longest = &member;
      queries += member.queries;
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
