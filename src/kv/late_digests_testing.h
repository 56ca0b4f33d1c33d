#pragma once

#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include "kv/block_digest.h"
#include "kv/block_pool.h"

namespace fieldprint::kv::testing {

/// Hashes as late as a device may: when the digests are waited for.
class LateDigests final : public backend::PendingDigests {
 public:
  /// `waits` counts those who had to wait.
  LateDigests(const BlockPool& pool, std::span<const BlockId> blocks, int& waits)
      : pool_(pool), blocks_(blocks.begin(), blocks.end()), waits_(waits) {}
  bool ready() override { return pages_ != nullptr; }
  std::chrono::nanoseconds took() override { return std::chrono::nanoseconds(0); }
  std::span<const Digest> wait() override {
    if (pages_ == nullptr) {
      ++waits_;
      pages_ = host_page_hasher(pool_)(blocks_);
    }
    return pages_->wait();
  }

 private:
  const BlockPool& pool_;
  std::vector<BlockId> blocks_;
  int& waits_;
  std::unique_ptr<backend::PendingDigests> pages_;
};

}  // namespace fieldprint::kv::testing
