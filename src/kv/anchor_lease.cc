#include "base/check.h"
#include "kv/prefix_cache.h"

namespace fieldprint::kv {

AnchorLease::AnchorLease(AnchorLease&& other) noexcept
    : cache_(std::exchange(other.cache_, nullptr)), keys_(std::move(other.keys_)) {
  other.keys_.clear();
}

AnchorLease& AnchorLease::operator=(AnchorLease&& other) noexcept {
  if (this != &other) {
    end();
    cache_ = std::exchange(other.cache_, nullptr);
    keys_ = std::move(other.keys_);
    other.keys_.clear();
  }
  return *this;
}

void AnchorLease::end() {
  if (cache_ != nullptr) {
    cache_->end_lease(keys_);
    cache_ = nullptr;
  }
  keys_.clear();
}

AnchorLease PrefixCache::lease(std::vector<BlockKey> keys) {
  for (const BlockKey& key : keys) {
    if (++leases_[key] > 1) {
      continue;
    }
    const auto found = index_.find(key);
    if (found != index_.end()) {
      ++pinned_blocks_;
      refresh(found->second);
    }
  }
  return AnchorLease(*this, std::move(keys));
}

void PrefixCache::end_lease(std::span<const BlockKey> keys) {
  // The last block first, as tables do, so that the chain is evicted from its end.
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    const auto lease = leases_.find(*key);
    CHECK(lease != leases_.end(), "the lease has ended");
    if (--lease->second > 0) {
      continue;
    }
    leases_.erase(lease);
    const auto found = index_.find(*key);
    if (found != index_.end()) {
      --pinned_blocks_;
      refresh(found->second);
    }
  }
}

}  // namespace fieldprint::kv
