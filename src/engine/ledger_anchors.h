#pragma once

#include <map>
#include <mutex>

#include "engine/authority.h"
#include "engine/committer.h"

namespace fieldprint::engine {

/// The anchors' lifecycle as a ledger tells it, for a committer. The authority must outlive it.
class LedgerAnchors final : public AnchorsInForce {
 public:
  explicit LedgerAnchors(Authority& authority) : authority_(authority) {}

  void poll() override { (void)authority_.poll(); }
  std::uint64_t size() const override { return authority_.size(); }
  Result<commit::AnchorRecord> admit(const Digest& id, const anchor::Use& use) const override;
  Status in_force(const Digest& id, std::int64_t time) const override {
    return authority_.in_force(id, time);
  }
  bool revoked(const Digest& id) const override { return authority_.revoked(id); }

 private:
  Authority& authority_;
  mutable std::mutex mutex_;                              // guards known_
  mutable std::map<Digest, commit::AnchorRecord> known_;  ///< what an id stands for never changes
};

}  // namespace fieldprint::engine
