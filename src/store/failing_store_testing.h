#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <utility>

#include "store/ledger_store.h"

namespace fieldprint::store {

/// A ledger whose appends fail when a test says so; all else goes to the ledger that it holds.
class FailingStore final : public LedgerStore {
 public:
  /// What becomes of an append.
  enum class Fate {
    kDone,
    kRefused,  ///< nothing is added, and an error says so
    kLost,     ///< it is added, and an error is all that comes back, as from a server that is lost while it
               ///< commits
  };

  explicit FailingStore(std::unique_ptr<LedgerStore> inner)
      : owned_(std::move(inner)), inner_(owned_.get()) {}
  /// From now on another ledger is there, which must outlive this object.
  void become(LedgerStore& other) { inner_ = &other; }

  /// Asked in each append, from the thread that leads it.
  std::function<Fate()> fate = [] { return Fate::kDone; };
  /// While it is set, nothing can be read.
  std::atomic<bool> unreadable = false;
  std::function<void()> on_read;                     ///< before leaves are read
  std::function<void(std::size_t count)> on_leaves;  ///< when so many were

  Result<ledger::Growth> grow(std::span<const LeafView> leaves, const Seal& seal) override {
    const Fate now = fate();
    if (now == Fate::kDone) return inner_->grow(leaves, seal);
    auto grown = now == Fate::kLost
                     ? inner_->grow(leaves, seal)
                     : inner_->grow(leaves, [&](const Growing& growing) -> Result<std::string> {
                         auto note = seal(growing);
                         if (!note) return note;
                         return environment_error("the disk is full");
                       });
    if (!grown) return grown;
    return environment_error("the server was lost while it committed");
  }
  Status settle() override { return gate() ? inner_->settle() : gate(); }
  Result<std::uint64_t> size() override { return inner_->size(); }
  Result<std::uint64_t> revision() override {
    if (Status status = gate(); !status) return status.error();
    return inner_->revision();
  }
  std::optional<std::uint64_t> glance() override {
    return unreadable ? std::optional<std::uint64_t>() : inner_->glance();
  }
  Result<std::vector<Bytes>> leaves(std::uint64_t begin, std::uint64_t end) override {
    if (on_read) on_read();
    if (Status status = gate(); !status) return status.error();
    auto found = inner_->leaves(begin, end);
    if (on_leaves && found) on_leaves(found->size());
    return found;
  }
  Result<std::vector<Digest>> nodes(int level, std::uint64_t begin, std::uint64_t end) override {
    return inner_->nodes(level, begin, end);
  }
  Result<std::vector<Digest>> hashes(std::span<const ledger::NodeId> ids) override {
    return inner_->hashes(ids);
  }
  Status keep_checkpoint(std::string_view note) override { return inner_->keep_checkpoint(note); }
  Result<std::optional<std::string>> checkpoint() override { return inner_->checkpoint(); }
  Result<std::vector<KeptCheckpoint>> checkpoints(std::uint64_t from, int limit) override {
    return inner_->checkpoints(from, limit);
  }
  Result<Extent> extent() override { return inner_->extent(); }
  Result<std::optional<ledger::NodeId>> stray_node() override { return inner_->stray_node(); }
  const std::string& name() const override { return inner_->name(); }

 private:
  Status gate() const {
    return unreadable ? Status(environment_error("the ledger cannot be read")) : Status();
  }
  std::unique_ptr<LedgerStore> owned_;
  LedgerStore* inner_;
};

}  // namespace fieldprint::store
