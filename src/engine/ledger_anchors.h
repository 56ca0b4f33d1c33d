#pragma once

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "engine/authority.h"
#include "engine/committer.h"

namespace fieldprint::engine {

/// The anchors' lifecycle as a ledger tells it, for a committer. A thread of its own reads what the ledger
/// has gained when somebody finds that it is not fresh, by itself for some time after others have appended,
/// because they may go on, and after bounds::kMaxLedgerSilence. The authority must outlive it.
class LedgerAnchors final : public AnchorsInForce {
 public:
  explicit LedgerAnchors(Authority& authority);
  ~LedgerAnchors() override;
  LedgerAnchors(const LedgerAnchors&) = delete;
  LedgerAnchors& operator=(const LedgerAnchors&) = delete;

  Status poll() override;
  bool fresh() override;
  Status await_fresh(std::chrono::milliseconds most) override;
  Status readable() const override { return authority_.readable(); }
  std::uint64_t reads() const override { return authority_.reads(); }
  void learn(std::uint64_t first, std::span<const store::Bytes> leaves) override {
    authority_.learn(first, leaves);
  }
  std::uint64_t size() const override { return authority_.size(); }
  Result<commit::AnchorRecord> admit(const Digest& id, const anchor::Use& use) const override;
  Status in_force(const Digest& id, std::int64_t time) const override {
    return authority_.in_force(id, time);
  }
  bool revoked(const Digest& id) const override { return authority_.revoked(id); }

 private:
  void follow();

  Authority& authority_;
  mutable std::mutex mutex_;                              // guards what follows; nothing is read under it
  mutable std::map<Digest, commit::AnchorRecord> known_;  ///< what an id stands for never changes
  bool wanted_ = false;                                   ///< somebody waits for a read
  bool stop_ = false;
  std::condition_variable wake_;
  std::condition_variable read_;
  std::thread thread_;
};

}  // namespace fieldprint::engine
