#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/sha256.h"
#include "core/block_layout.h"
#include "kv/block_key.h"
#include "kv/prefix_cache.h"

namespace fieldprint::kv {

/// The block table of one sequence. A step uses it thus:
///   match_prefix, bring_back (once, empty table) → append (before the kernels, which write the new slots) →
///   seal_filled (after the kernels) → append …
/// All blocks but the last are full; full blocks are sealed by seal_filled and read-only from then on. A
/// partly filled last block is exclusive when append returns. Move-only; releases its blocks at its end.
/// The cache must outlive it.
class BlockTable {
 public:
  /// `root` as root_key makes it; `layout` says how many of the first tokens are anchors (after the sink).
  BlockTable(PrefixCache& cache, const BlockKey& root, core::BlockLayout layout, AnchorOdds odds = {});
  BlockTable(BlockTable&& other) noexcept;
  BlockTable& operator=(BlockTable&& other) noexcept;
  ~BlockTable() { release(); }

  const core::BlockLayout& layout() const { return layout_; }
  AnchorOdds odds() const { return odds_; }
  /// Tokens held: positions 0…size()−1 have a slot.
  std::int64_t size() const { return static_cast<std::int64_t>(tokens_.size()); }
  std::span<const std::int32_t> tokens() const { return tokens_; }
  /// Physical blocks in table order: sink, anchors, context. append, seal_filled, truncate and release may
  /// change them.
  std::span<const BlockId> blocks() const { return blocks_; }
  /// Leading blocks that are sealed.
  std::int64_t sealed_blocks() const { return static_cast<std::int64_t>(keys_.size()); }
  /// Keys of the sealed blocks.
  std::span<const BlockKey> keys() const { return keys_; }

  struct Slot {
    BlockId block;      ///< physical
    std::int32_t slot;  ///< 0…63
  };
  /// Where the token at `position` < size() lies.
  Slot slot(std::int64_t position) const;

  /// Takes the longest cached prefix of `tokens` (a sequence from position 0); returns how many tokens it
  /// holds. The table must be empty. Logits need the last token computed: pass all tokens but that one.
  std::int64_t match_prefix(std::span<const std::int32_t> tokens);
  /// After match_prefix with the same tokens: brings back what of the prefix that follows is swapped; returns
  /// how many tokens that is. Separate, because it may evict what another match counts on.
  std::int64_t bring_back(std::span<const std::int32_t> tokens);

  /// Blocks that append of `count` more tokens would acquire, with the copy of a shared last block.
  std::int64_t blocks_needed(std::int64_t count) const;
  /// Gives the next tokens their slots. False, and nothing changed but cached blocks evicted, if
  /// blocks_needed(tokens.size()) > cache.available_blocks().
  [[nodiscard]] bool append(std::span<const std::int32_t> tokens);
  /// Seals the full blocks whose slots have all been written. Returns how many are newly sealed.
  std::int64_t seal_filled();
  /// The same for all tables of a step, with one call of the page hasher. Distinct tables of one cache.
  static std::int64_t seal_filled(std::span<BlockTable* const> tables);

  /// Keeps the first `count` tokens: preface_tokens() ≤ count ≤ size(). Cut slots are zeroed; a cut inside
  /// a shared block copies it: false, and nothing changed, if no block is available for that.
  [[nodiscard]] bool truncate(std::int64_t count);
  /// A table of the same tokens that shares every block. Who appends to a partly filled last block copies it
  /// first.
  BlockTable fork() const;
  /// Gives every block back, the last one first. The table is empty afterwards and can be filled again.
  void release();

  /// Blocks that come free or cached if this table is released: those that no other table holds and that
  /// are not pinned.
  std::int64_t reclaimable_blocks() const;
  /// Pinned ones among its blocks.
  std::int64_t pinned_blocks() const;
  /// True if the next token goes into a block that must be copied first.
  bool tail_shared() const;

  /// Block digests in table order, the partly filled last block's as it is now.
  std::vector<Digest> digests() const { return cache_->digests(blocks_); }

 private:
  std::span<const std::int32_t> block_tokens(std::int64_t index) const;
  void collect_filled(std::vector<SealRequest>& requests) const;

  PrefixCache* cache_;
  BlockKey root_;
  core::BlockLayout layout_;
  AnchorOdds odds_;
  std::vector<std::int32_t> tokens_;
  std::vector<BlockId> blocks_;
  std::vector<BlockKey> keys_;  ///< of the sealed blocks
};

}  // namespace fieldprint::kv
