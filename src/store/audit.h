#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "ledger/signed_note.h"
#include "store/ledger_store.h"

namespace fieldprint::store {

/// Records (leaves) [begin, end) of a ledger.
struct RecordRange {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

struct AuditOptions {
  /// Of which one signed each checkpoint, and so, with the last one, every record; empty: not asked.
  std::span<const ledger::VerifierKey> keys = {};
  std::span<const std::string> published =
      {};  ///< checkpoints from elsewhere that this ledger must agree with
  std::function<void(std::uint64_t done, std::uint64_t total)> progress = {};
};

struct AuditReport {
  std::uint64_t leaves = 0;
  std::uint64_t checkpoints = 0;  ///< kept ones that agree
  Digest root{};
  std::string problem;                     ///< what is wrong first; empty if nothing is
  std::optional<RecordRange> first_wrong;  ///< the record that it is about, or those among which it is
};

/// Reads every leaf, recomputes the whole tree from them, and compares every stored hash and every checkpoint
/// with it. What another process appends meanwhile is left out. A failing database is an error, a wrong
/// ledger is a report.
Result<AuditReport> audit(LedgerStore& store, const AuditOptions& options = {});

}  // namespace fieldprint::store
