#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/ops.h"
#include "exact/format.h"

/// Which sequences of a step have their sink and anchors in common, for whoever plans attention.
namespace fieldprint::backend {

/// How many blocks of sink and anchors the last query sees; the table may end after them.
inline std::int32_t preface_blocks(const AttentionSequence& sequence) {
  const std::int32_t last = sequence.first_position + sequence.queries - 1;
  const std::int32_t seen = std::min(last, sequence.anchor_tokens);
  return 1 + (seen + exact::kPageTokens - 1) / exact::kPageTokens;
}

/// The end of the run of sequences from `first` on whose sink and anchor blocks are the same, as far as each
/// sees them.
inline std::size_t shared_preface_end(std::span<const AttentionSequence> sequences, std::size_t first) {
  // Compared with the one that sees most: what two see alike, they may go on from differently.
  const AttentionSequence* longest = &sequences[first];
  std::size_t end = first + 1;
  for (; end < sequences.size(); ++end) {
    const AttentionSequence& next = sequences[end];
    const std::int32_t common = std::min(preface_blocks(*longest), preface_blocks(next));
    if (next.anchor_tokens != longest->anchor_tokens) break;
    if (!std::equal(next.blocks, next.blocks + common, longest->blocks)) break;
    if (preface_blocks(next) > preface_blocks(*longest)) longest = &next;
  }
  return end;
}

}  // namespace fieldprint::backend
