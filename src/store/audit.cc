#include "store/audit.h"

#include <algorithm>
#include <utility>

namespace fieldprint::store {
namespace {

constexpr std::uint64_t kChunk = 1024;
constexpr int kCheckpointChunk = 256;

// A stored hash that is not what the leaves say.
struct Mismatch {
  std::uint64_t last = 0;  // the leaf that completes its subtree
  int level = 0;
  std::uint64_t index = 0;
  bool missing = false;
};

class Auditor {
 public:
  Auditor(LedgerStore& store, const AuditOptions& options) : store_(store), options_(options) {}

  Result<AuditReport> run() {
    Status status = audit_all();
    report_.root = tree_.root();
    if (!status && status.error().kind != ErrorKind::kRefuted) return status.error();
    if (!status) report_.problem = status.error().message;
    return std::move(report_);
  }

 private:
  Status audit_all();
  Status audit_leaves(std::uint64_t end);
  Status compare_level(const ledger::Growth& growth, int level, std::optional<Mismatch>& first);
  Status audit_kept();
  Status compare(const ledger::Checkpoint& checkpoint, std::string_view name);
  Result<ledger::Checkpoint> open(std::string_view note) const {
    return options_.keys.empty() ? read_checkpoint(note) : ledger::open_checkpoint(note, options_.keys);
  }
  Error wrong(std::uint64_t begin, std::uint64_t end, std::string_view why);
  Error wrong(const Mismatch& mismatch);

  LedgerStore& store_;
  const AuditOptions& options_;
  AuditReport report_;
  ledger::CompactTree tree_;  // of the leaves that were read
  std::uint64_t total_ = 0;   // leaves that the ledger stated when the audit began
  std::uint64_t agreed_ = 0;  // leaves that the last checkpoint covers that agrees
};

Error Auditor::wrong(std::uint64_t begin, std::uint64_t end, std::string_view why) {
  report_.first_wrong = RecordRange{begin, end};
  if (end - begin == 1) return refuted(fmt::format("record {} of the ledger is wrong: {}", begin, why));
  return refuted(fmt::format("one of the records {} to {} is wrong: {}", begin, end - 1, why));
}

Error Auditor::wrong(const Mismatch& mismatch) {
  if (mismatch.level == 0) {
    return wrong(
        mismatch.index, mismatch.index + 1,
        mismatch.missing ? "its leaf hash is missing" : "its bytes do not have the leaf hash that is stored");
  }
  return wrong(mismatch.index << mismatch.level, mismatch.last + 1,
               fmt::format("the stored hash {} at level {} above them {}", mismatch.index, mismatch.level,
                           mismatch.missing ? "is missing" : "does not follow from them"));
}

// The first stored hash of one level that is wrong, among those that `growth` completes.
Status Auditor::compare_level(const ledger::Growth& growth, int level, std::optional<Mismatch>& first) {
  const auto& expected = growth.completed(level);
  const std::uint64_t begin = growth.old_size() >> level;
  auto stored = store_.nodes(level, begin, begin + expected.size());
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

// Goes on to leaf `end`, or to the first that is missing or wrong.
Status Auditor::audit_leaves(std::uint64_t end) {
  auto leaves = store_.leaves(tree_.size(), end);
  if (!leaves && leaves.error().kind == ErrorKind::kRefuted)
    return wrong(tree_.size(), end, leaves.error().message);
  if (!leaves) return leaves.error();
  ledger::Growth growth(tree_);
  for (const Bytes& leaf : *leaves) growth.append(ledger::leaf_hash(leaf));
  std::optional<Mismatch> first;
  for (int level = 0; level < 64 && !growth.completed(level).empty(); ++level) {
    if (Status status = compare_level(growth, level, first); !status) return status;
  }
  if (first) return wrong(*first);
  if (growth.size() < end) {
    return wrong(growth.size(), growth.size() + 1,
                 fmt::format("it is missing, but the ledger states {} records", total_));
  }
  tree_ = growth.tree();
  return {};
}

Status Auditor::compare(const ledger::Checkpoint& checkpoint, std::string_view name) {
  if (checkpoint.size > total_) {
    return wrong(total_, checkpoint.size,
                 fmt::format("{} states {} records, but the ledger has {}", name, checkpoint.size, total_));
  }
  auto root = store_.root_at(checkpoint.size);
  if (!root) return root.error();
  if (*root == checkpoint.root) return {};
  if (checkpoint.size <= agreed_) return refuted(fmt::format("{} states another root than the ledger", name));
  return wrong(agreed_, checkpoint.size, fmt::format("they do not give the root that {} states", name));
}

Status Auditor::audit_kept() {
  std::uint64_t from = 0;
  while (true) {
    auto kept = store_.checkpoints(from, kCheckpointChunk);
    if (!kept) return kept.error();
    if (kept->empty()) return {};
    for (const KeptCheckpoint& one : *kept) {
      if (one.size > total_) {
        // Another process may have appended since the audit began.
        auto now = store_.size();
        if (!now) return now.error();
        if (*now > total_ && one.size <= *now) return {};
      }
      const std::string name = fmt::format("the checkpoint kept for {} records", one.size);
      auto checkpoint = open(one.note);
      if (!checkpoint) return refuted(fmt::format("{} is wrong: {}", name, checkpoint.error().message));
      if (checkpoint->size != one.size)
        return refuted(fmt::format("{} is wrong: it states {}", name, checkpoint->size));
      if (Status status = compare(*checkpoint, name); !status) return status;
      agreed_ = one.size;
      ++report_.checkpoints;
    }
    from = kept->back().size + 1;
  }
}

Status Auditor::audit_all() {
  auto extent = store_.extent();
  if (!extent) return extent.error();
  total_ = report_.leaves = extent->stated;
  while (tree_.size() < total_) {
    if (Status status = audit_leaves(std::min(total_, tree_.size() + kChunk)); !status) return status;
    if (options_.progress) options_.progress(tree_.size(), total_);
  }
  if (extent->leaves > total_ || extent->hashes > total_) {
    return wrong(total_, std::max(extent->leaves, extent->hashes),
                 fmt::format("the ledger states {} records, but holds {} and {} leaf hashes", total_,
                             extent->leaves, extent->hashes));
  }
  // One that is there already would stop the append that is to store it.
  auto stray = store_.stray_node();
  if (!stray) return stray.error();
  if (*stray) {
    return refuted(fmt::format("the stored hash {} at level {} is of no subtree of the ledger's {} records",
                               (*stray)->index, (*stray)->level, total_));
  }
  if (Status status = audit_kept(); !status) return status;
  // Without this, whoever has no key could drop the checkpoints that contradict what he wrote.
  if (!options_.keys.empty() && agreed_ < total_) {
    return wrong(agreed_, total_, fmt::format("no signed checkpoint covers more than {} records", agreed_));
  }
  for (const std::string& note : options_.published) {
    auto checkpoint = open(note);
    if (!checkpoint) return checkpoint.error();
    const std::string name = fmt::format("the published checkpoint for {} records", checkpoint->size);
    if (Status status = compare(*checkpoint, name); !status) return status;
  }
  return {};
}

}  // namespace

Result<AuditReport> audit(LedgerStore& store, const AuditOptions& options) {
  return Auditor(store, options).run();
}

}  // namespace fieldprint::store
