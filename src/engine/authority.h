#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "anchor/registry.h"
#include "base/result.h"
#include "store/ledger_store.h"

namespace fieldprint::engine {

/// Says which anchors are in force, by following a ledger. Safe to call from several threads. While the
/// ledger cannot be read nothing is in force, because nobody knows what was revoked.
class Authority {
 public:
  /// Reads the ledger, which must outlive this object, and whose log has this key. Refuses one whose leaves
  /// are not those of its tree.
  static Result<std::unique_ptr<Authority>> follow(store::LedgerStore& ledger,
                                                   const ledger::VerifierKey& log);

  /// Whether the anchor may begin to influence a request, and why not (anchor::Registry::admit).
  Status admit(const Digest& id, const anchor::Use& use) const;
  /// Whether one that was admitted may go on, and why not.
  Status in_force(const Digest& id, std::int64_t now) const;
  /// Whether a revocation of it was read; nothing takes that back.
  bool revoked(const Digest& id) const;

  /// Takes what the ledger gained, by whomever; cheap when that is nothing. True if any anchor left force by
  /// it, or if the ledger could not be read. What expires meanwhile in_force alone tells.
  bool poll();
  /// Whether everything that the ledger is known to have gained was taken, by memory alone: it waits for no
  /// read, not even for one that another thread has under way. False while the ledger cannot be read.
  bool fresh() const;
  /// Leaves that are in the ledger from this index on, for who has just put them there: they need not be
  /// read.
  void learn(std::uint64_t first, std::span<const store::Bytes> leaves);
  /// The error that keeps the ledger from being read, if there is one.
  Status readable() const;
  /// How often the ledger was looked into without an error.
  std::uint64_t reads() const { return reads_; }
  /// Leaves read: the size of the ledger whose state this is.
  std::uint64_t size() const;

  /// The state as it is now.
  anchor::Registry registry() const;

 private:
  Authority(store::LedgerStore& ledger, const ledger::VerifierKey& log) : ledger_(ledger), registry_(log) {}
  Status read(ledger::CompactTree* tree);
  void apply(std::span<const store::Bytes> leaves);

  static constexpr std::uint64_t kNoRevision = std::numeric_limits<std::uint64_t>::max();

  store::LedgerStore& ledger_;
  std::mutex reading_;                                 // one reads at a time, and alone changes what follows
  std::atomic<std::uint64_t> revision_ = kNoRevision;  // of the ledger, before it was last read
  std::atomic<std::uint64_t> reads_ = 0;
  mutable std::mutex mutex_;  // guards what follows; nothing is read under it
  anchor::Registry registry_;
  std::optional<Error> failure_;
};

}  // namespace fieldprint::engine
