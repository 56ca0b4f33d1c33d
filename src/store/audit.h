#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "ledger/signed_note.h"
#include "store/ledger_store.h"

namespace fieldprint::store {

struct AuditReport {
  std::uint64_t leaves = 0;
  std::uint64_t checkpoints = 0;
  Digest root{};
};

/// Reads every leaf, recomputes the whole tree from them, and compares every stored hash and every checkpoint
/// with it; checkpoints must be signed by one of `keys`, unless that is empty. Refuted, naming the first
/// record (leaf) that is wrong, or the records among which it is, if anything disagrees. What another process
/// appends meanwhile is left out.
Result<AuditReport> audit(LedgerStore& store, std::span<const ledger::VerifierKey> keys,
                          const std::function<void(std::uint64_t done, std::uint64_t total)>& progress = {});

}  // namespace fieldprint::store
