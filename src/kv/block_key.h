#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>
#include <vector>

#include "base/sha256.h"
#include "core/block_layout.h"

namespace fieldprint::kv {

/// Content address of a block: SHA-256 over everything its bytes follow from. Because the arithmetic is
/// canonical, equal keys mean equal bytes, on every machine and in whatever steps they were computed.
struct BlockKey {
  Digest digest{};

  friend auto operator<=>(const BlockKey&, const BlockKey&) = default;
};

struct BlockKeyHash {
  std::size_t operator()(const BlockKey& key) const {
    std::size_t value;
    std::memcpy(&value, key.digest.data(), sizeof value);
    return value;
  }
};

/// Floor and ceiling of the anchor mass as odds γ/(1−γ), as in backend::AttentionSequence.
struct AnchorOdds {
  float floor = 0.0F;                                      ///< 0 for none
  float ceiling = std::numeric_limits<float>::infinity();  ///< +infinity for none
};

/// Parent of every sink block:
///   SHA-256("fieldprint kv root v0\n" ‖ model digest ‖ u64 length of the canon version ‖ canon version)
BlockKey root_key(const Digest& model, std::string_view canon_version);

/// Key of a full block of `segment` after `parent`:
///   SHA-256("fieldprint kv key v0\n" ‖ parent ‖ u8 segment ‖ u64 count ‖ count × i32 token)
/// Integers are little endian.
BlockKey block_key(const BlockKey& parent, core::Segment segment, std::span<const std::int32_t> tokens);

/// Key of the first context block after anchors. Floor and ceiling change the states of the context and of
/// nothing before it, so they enter here:
///   SHA-256("fieldprint kv context v0\n" ‖ parent ‖ f32 floor ‖ f32 ceiling ‖ u64 count ‖ count × i32 token)
/// A sequence without anchors has neither, whatever the odds say; its first context block is a plain one.
BlockKey first_context_key(const BlockKey& parent, AnchorOdds odds, std::span<const std::int32_t> tokens);

/// Key of table block `index`, chosen among the above. `tokens` are the block's own.
BlockKey table_block_key(const BlockKey& parent, core::BlockLayout layout, AnchorOdds odds,
                         std::int64_t index, std::span<const std::int32_t> tokens);

/// Keys of the blocks that `tokens` (a sequence from position 0) fill, in table order.
std::vector<BlockKey> chain_keys(const BlockKey& root, core::BlockLayout layout, AnchorOdds odds,
                                 std::span<const std::int32_t> tokens);

}  // namespace fieldprint::kv
