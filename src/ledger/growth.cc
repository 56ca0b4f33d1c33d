#include "ledger/growth.h"

namespace fieldprint::ledger {

void Growth::append(const Digest& leaf_hash) {
  after_.append(leaf_hash, [this](NodeId id, const Digest& hash) {
    completed_[static_cast<std::size_t>(id.level)].push_back(hash);
  });
}

std::vector<Digest> Growth::inclusion_proof(std::uint64_t index) const {
  CHECK(old_size() <= index && index < size());
  const NodeReader reader = [this](NodeId id) -> Result<Digest> {
    const std::uint64_t first = old_size() >> id.level;
    if (id.index >= first) return completed(id.level).at(id.index - first);
    // What lies left of an added leaf's path is a whole subtree of the old tree whose parent was not whole.
    const auto peak = before_.peak(id);
    CHECK(peak.has_value());
    return *peak;
  };
  return ledger::inclusion_proof(index, size(), reader).value();
}

}  // namespace fieldprint::ledger
