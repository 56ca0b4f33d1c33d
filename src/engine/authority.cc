#include "engine/authority.h"

#include "base/bounds.h"

namespace fieldprint::engine {

Result<std::unique_ptr<Authority>> Authority::follow(store::LedgerStore& ledger,
                                                     const ledger::VerifierKey& log) {
  std::unique_ptr<Authority> authority(new Authority(ledger, log));
  auto revision = ledger.revision();
  if (!revision) return revision.error();
  ledger::CompactTree tree;
  if (Status status = authority->read(&tree); !status) return status.error();
  auto root = ledger.root_at(tree.size());
  if (!root) return root.error();
  if (*root != tree.root()) {
    return environment_error(fmt::format(
        "the ledger {} is damaged: its records are not those of its tree (fieldprint ledger audit names "
        "the first wrong one); restore it from a copy",
        ledger.name()));
  }
  authority->revision_ = *revision;
  return authority;
}

// The leaves from size() on; also into `tree`, if there is one.
Status Authority::read(ledger::CompactTree* tree) {
  while (true) {
    const std::uint64_t begin = size();
    auto leaves = ledger_.leaves(begin, begin + bounds::kReplayLeaves);
    if (!leaves) return leaves.error();
    if (tree != nullptr) {
      for (const store::Bytes& leaf : *leaves) tree->append(ledger::leaf_hash(leaf));
    }
    apply(*leaves);
    if (std::cmp_less(leaves->size(), bounds::kReplayLeaves)) return {};
  }
}

// A record that is refused changes nothing, and the registry keeps the reason.
void Authority::apply(std::span<const store::Bytes> leaves) {
  const std::lock_guard lock(mutex_);
  for (const store::Bytes& leaf : leaves) (void)registry_.apply(registry_.size(), leaf);
}

Status Authority::admit(const Digest& id, const anchor::Use& use) const {
  const std::lock_guard lock(mutex_);
  return failure_ ? Status(*failure_) : registry_.admit(id, use);
}

Status Authority::in_force(const Digest& id, std::int64_t now) const {
  const std::lock_guard lock(mutex_);
  return failure_ ? Status(*failure_) : registry_.in_force(id, now);
}

bool Authority::revoked(const Digest& id) const {
  const std::lock_guard lock(mutex_);
  const anchor::Entry* entry = registry_.find(id);
  return entry != nullptr && entry->state == anchor::AnchorState::kRevoked;
}

bool Authority::poll() {
  const std::lock_guard reading(reading_);
  auto revision = ledger_.revision();
  if (revision && revision_ == *revision) return false;
  const auto departures = [this] {
    const std::lock_guard lock(mutex_);
    return registry_.departures();
  };
  const std::uint64_t before = departures();
  const Status status = revision ? read(nullptr) : Status(revision.error());
  {
    const std::lock_guard lock(mutex_);
    failure_ = status ? std::nullopt : std::optional(status.error());
  }
  revision_ = status ? *revision : kNoRevision;
  if (status) ++reads_;
  return !status || departures() != before;
}

bool Authority::fresh() const {
  const auto revision = ledger_.glance();
  return revision && revision_ == *revision;
}

void Authority::learn(std::uint64_t first, std::span<const store::Bytes> leaves) {
  const std::lock_guard reading(reading_);
  if (size() == first) apply(leaves);
}

Status Authority::readable() const {
  const std::lock_guard lock(mutex_);
  return failure_ ? Status(*failure_) : Status();
}

std::uint64_t Authority::size() const {
  const std::lock_guard lock(mutex_);
  return registry_.size();
}

anchor::Registry Authority::registry() const {
  const std::lock_guard lock(mutex_);
  return registry_;
}

}  // namespace fieldprint::engine
