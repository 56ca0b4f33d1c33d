#pragma once

#include <algorithm>
#include <cstdint>

/// Where the tokens of a sequence lie in its block table. The table has three segments, each aligned to its
/// own first block, so that a partly filled last anchor block shifts nothing:
///   [sink: 1 block, position 0] [anchors: ceil(A/64) blocks, positions 1…A] [context: positions A+1…]
namespace fieldprint::core {

inline constexpr std::int64_t kBlockTokens = 64;  ///< tokens of a page, and so of a block

enum class Segment : std::uint8_t { kSink = 0, kAnchors = 1, kContext = 2 };

/// A token's place: index into the block table, and the slot in that block's pages, 0…63.
struct TokenPlace {
  std::int64_t block;
  std::int32_t slot;
};

/// The segments of one sequence. `anchor_tokens` is A ≥ 0, without the sink.
struct BlockLayout {
  std::int64_t anchor_tokens = 0;

  constexpr std::int64_t anchor_blocks() const { return (anchor_tokens + kBlockTokens - 1) / kBlockTokens; }
  /// Tokens and blocks before the context: the sink and the anchors.
  constexpr std::int64_t preface_tokens() const { return 1 + anchor_tokens; }
  constexpr std::int64_t preface_blocks() const { return 1 + anchor_blocks(); }

  /// Blocks that hold the first `tokens` tokens.
  constexpr std::int64_t blocks_for(std::int64_t tokens) const {
    if (tokens <= 0) {
      return 0;
    }
    const std::int64_t anchors = std::min(tokens - 1, anchor_tokens);
    const std::int64_t context = tokens - 1 - anchors;
    return 1 + (anchors + kBlockTokens - 1) / kBlockTokens + (context + kBlockTokens - 1) / kBlockTokens;
  }

  constexpr Segment segment_of_block(std::int64_t block) const {
    if (block == 0) {
      return Segment::kSink;
    }
    return block < preface_blocks() ? Segment::kAnchors : Segment::kContext;
  }

  constexpr TokenPlace place(std::int64_t position) const {
    if (position == 0) {
      return {0, 0};
    }
    if (position <= anchor_tokens) {
      const std::int64_t i = position - 1;
      return {1 + i / kBlockTokens, static_cast<std::int32_t>(i % kBlockTokens)};
    }
    const std::int64_t i = position - preface_tokens();
    return {preface_blocks() + i / kBlockTokens, static_cast<std::int32_t>(i % kBlockTokens)};
  }

  /// Position of the first token of a block, and the position after its last: the block is full when the
  /// sequence holds `block_end` tokens. The sink's block is full with one token, the last anchor block with
  /// the last anchor.
  constexpr std::int64_t block_begin(std::int64_t block) const {
    if (block == 0) {
      return 0;
    }
    if (block < preface_blocks()) {
      return 1 + (block - 1) * kBlockTokens;
    }
    return preface_tokens() + (block - preface_blocks()) * kBlockTokens;
  }
  constexpr std::int64_t block_end(std::int64_t block) const {
    if (block == 0) {
      return 1;
    }
    if (block < preface_blocks()) {
      return std::min(1 + block * kBlockTokens, preface_tokens());
    }
    return block_begin(block) + kBlockTokens;
  }

  /// Leading blocks that `tokens` tokens fill.
  constexpr std::int64_t full_blocks(std::int64_t tokens) const {
    const std::int64_t blocks = blocks_for(tokens);
    return blocks > 0 && block_end(blocks - 1) > tokens ? blocks - 1 : blocks;
  }

  friend constexpr bool operator==(const BlockLayout&, const BlockLayout&) = default;
};

}  // namespace fieldprint::core
