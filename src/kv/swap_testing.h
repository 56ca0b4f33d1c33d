#pragma once

#include <vector>

#include "kv/prefix_cache.h"

namespace fieldprint::kv {

/// What tests reach into a swap area for.
struct SwapProbe {
  explicit SwapProbe(PrefixCache& cache) : area(*cache.swap_) {}
  explicit SwapProbe(SwapArea& it) : area(it) {}
  SwapArea& area;
  /// Keys of what is swapped, the oldest first.
  std::vector<BlockKey> keys() const { return {area.ages_.begin(), area.ages_.end()}; }
  const BlockKey& parent(const BlockKey& key) const { return area.entries_.at(key).content.parent; }
  /// Flips bits of a swapped block where its bytes lie: in the memory itself, or in the file.
  void alter(const BlockKey& key, std::int64_t byte, std::uint8_t bits = 1) {
    const std::int64_t slot = area.entries_.at(key).slot;
    CHECK(area.storage_->load(slot).ok(), "slot {} cannot be read", slot);
    area.storage_->room(slot)[byte] ^= bits;
    CHECK(area.storage_->store(slot).ok(), "slot {} cannot be written", slot);
  }
  /// The same for any, chosen by a number. False if nothing is swapped.
  bool alter_any(std::uint64_t which, std::int64_t byte, std::uint8_t bits = 1) {
    const std::vector<BlockKey> all = keys();
    if (!all.empty()) alter(all[which % all.size()], byte, bits);
    return !all.empty();
  }
};

}  // namespace fieldprint::kv
