#include "store/audit.h"

#include <algorithm>

namespace fieldprint::store {
namespace {

constexpr std::uint64_t kChunk = 1024;
constexpr int kCheckpointChunk = 256;

std::string records(std::uint64_t begin, std::uint64_t end) {
  return end - begin == 1 ? fmt::format("record {} of the ledger is wrong", begin)
                          : fmt::format("one of the records {} to {} is wrong", begin, end - 1);
}

// A stored hash that is not what the leaves say.
struct Mismatch {
  std::uint64_t last = 0;  // the leaf that completes its subtree
  int level = 0;
  std::uint64_t index = 0;
  bool missing = false;
};

// The first stored hash of one level that is wrong, among those that `growth` completes.
Status compare_level(LedgerStore& store, const ledger::Growth& growth, int level,
                     std::optional<Mismatch>& first) {
  const auto& expected = growth.completed(level);
  const std::uint64_t begin = growth.old_size() >> level;
  auto stored = store.nodes(level, begin, begin + expected.size());
  if (!stored) return stored.error();
  const auto differs = std::mismatch(stored->begin(), stored->end(), expected.begin()).first;
  const auto place = static_cast<std::uint64_t>(differs - stored->begin());
  if (place == expected.size()) return {};
  const std::uint64_t index = begin + place;
  const Mismatch found = {((index + 1) << level) - 1, level, index, differs == stored->end()};
  // Levels come in order, so that of two completed by one leaf the lower one stays.
  if (!first || found.last < first->last) first = found;
  return {};
}

Error explain(const Mismatch& mismatch) {
  const std::uint64_t begin = mismatch.index << mismatch.level;
  const std::string_view problem = mismatch.missing ? "is missing" : "is not the one that its bytes give";
  if (mismatch.level == 0)
    return refuted(fmt::format("{}: its stored leaf hash {}", records(begin, begin + 1), problem));
  return refuted(fmt::format("{}, or their tree is: the stored hash {} at level {} {}",
                             records(begin, mismatch.last + 1), mismatch.index, mismatch.level,
                             mismatch.missing ? "is missing" : "does not follow from them"));
}

// Appends leaves [tree.size(), end) to `tree`; refuted at the first that is missing or wrong.
Status audit_leaves(LedgerStore& store, ledger::CompactTree& tree, std::uint64_t end, std::uint64_t total) {
  auto leaves = store.leaves(tree.size(), end);
  if (!leaves) return leaves.error();
  ledger::Growth growth(tree);
  for (const Bytes& leaf : *leaves) growth.append(ledger::leaf_hash(leaf));
  std::optional<Mismatch> first;
  for (int level = 0; level < 64; ++level) {
    if (growth.completed(level).empty()) break;
    if (Status status = compare_level(store, growth, level, first); !status) return status;
  }
  if (first) return explain(*first);
  if (growth.size() < end) {
    return refuted(fmt::format("{}: it is missing, but the ledger states {} records",
                               records(growth.size(), growth.size() + 1), total));
  }
  tree = growth.tree();
  return {};
}

// `agreed`: leaves that the last checkpoint covers that agrees.
Status audit_checkpoint(LedgerStore& store, const KeptCheckpoint& kept, std::uint64_t agreed,
                        std::uint64_t total, std::span<const ledger::VerifierKey> keys) {
  const auto wrong = [&](std::string_view what) {
    return refuted(fmt::format("the checkpoint kept for {} records is wrong: {}", kept.size, what));
  };
  auto checkpoint = keys.empty() ? read_checkpoint(kept.note) : ledger::open_checkpoint(kept.note, keys);
  if (!checkpoint) return wrong(checkpoint.error().message);
  if (checkpoint->size != kept.size) return wrong(fmt::format("it states {}", checkpoint->size));
  if (checkpoint->size > total) {
    return refuted(fmt::format("{}: a signed checkpoint states {} records, but the ledger has {}",
                               records(total, checkpoint->size), checkpoint->size, total));
  }
  auto root = store.root_at(checkpoint->size);
  if (!root) return root.error();
  if (*root == checkpoint->root) return {};
  if (checkpoint->size == agreed) return wrong("it states another root");
  return refuted(fmt::format("{}: they do not give the root that the checkpoint for {} records states",
                             records(agreed, checkpoint->size), checkpoint->size));
}

}  // namespace

Result<AuditReport> audit(LedgerStore& store, std::span<const ledger::VerifierKey> keys,
                          const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
  auto extent = store.extent();
  if (!extent) return extent.error();
  const std::uint64_t total = extent->stated;
  ledger::CompactTree tree;
  while (tree.size() < total) {
    const std::uint64_t end = std::min(total, tree.size() + kChunk);
    if (Status status = audit_leaves(store, tree, end, total); !status) return status.error();
    if (progress) progress(tree.size(), total);
  }
  if (extent->leaves > total || extent->hashes > total) {
    return refuted(fmt::format("the ledger states {} records, but holds {} and {} leaf hashes", total,
                               extent->leaves, extent->hashes));
  }
  AuditReport report = {total, 0, tree.root()};
  std::uint64_t agreed = 0;
  std::uint64_t from = 0;
  while (true) {
    auto kept = store.checkpoints(from, kCheckpointChunk);
    if (!kept) return kept.error();
    for (const KeptCheckpoint& checkpoint : *kept) {
      if (checkpoint.size > total) {
        // Another process may have appended since; what it signed must agree with what is there now.
        auto now = store.size();
        if (!now) return now.error();
        if (checkpoint.size <= *now) return report;
      }
      Status status = audit_checkpoint(store, checkpoint, agreed, total, keys);
      if (!status) return status.error();
      agreed = checkpoint.size;
      ++report.checkpoints;
    }
    if (kept->empty() || agreed == ~std::uint64_t{0}) return report;
    from = kept->back().size + 1;
  }
}

}  // namespace fieldprint::store
