#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>

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
  /// The error that keeps the ledger from being read, if there is one.
  Status readable() const;
  /// Leaves read: the size of the ledger whose state this is.
  std::uint64_t size() const;

  /// The state as it is now.
  anchor::Registry registry() const;

 private:
  Authority(store::LedgerStore& ledger, const ledger::VerifierKey& log) : ledger_(ledger), registry_(log) {}
  Status read(ledger::CompactTree* tree);

  store::LedgerStore& ledger_;
  mutable std::mutex mutex_;  // guards all below
  anchor::Registry registry_;
  std::optional<std::uint64_t> revision_;  // of the ledger, before it was last read
  std::optional<Error> failure_;
};

}  // namespace fieldprint::engine
