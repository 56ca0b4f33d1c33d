#include "engine/ledger_anchors.h"

#include "base/check.h"

namespace fieldprint::engine {

Result<commit::AnchorRecord> LedgerAnchors::admit(const Digest& id, const anchor::Use& use) const {
  if (Status status = authority_.admit(id, use); !status) return status.error();
  const std::lock_guard lock(mutex_);
  const auto known = known_.find(id);
  if (known != known_.end()) return known->second;
  const anchor::Registry registry = authority_.registry();
  const anchor::Entry* entry = registry.find(id);
  CHECK(entry != nullptr, "anchor {} is in force and unknown", to_hex(id));
  return known_.emplace(id, commit::AnchorRecord{id, entry->anchor.canonical_bytes()}).first->second;
}

}  // namespace fieldprint::engine
