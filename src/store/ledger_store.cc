#include "store/ledger_store.h"

#include <map>
#include <utility>

#include "base/bounds.h"
#include "store/audit.h"

namespace fieldprint::store {
namespace {

// Computes with hashes that are all fetched at once: one round trip to a database server, not one for each.
template <class T>
Result<T> with_hashes(LedgerStore& store,
                      const std::function<Result<T>(const ledger::NodeReader&)>& compute) {
  std::vector<ledger::NodeId> ids;
  auto dry = compute([&](ledger::NodeId id) -> Result<Digest> {
    ids.push_back(id);
    return Digest{};
  });
  if (!dry) return dry;
  auto hashes = store.hashes(ids);
  if (!hashes) return hashes.error();
  // The same calls in the same order.
  std::size_t next = 0;
  return compute([&](ledger::NodeId) -> Result<Digest> { return hashes->at(next++); });
}

}  // namespace

Result<std::uint64_t> LedgerStore::append(std::span<const Bytes> leaves) {
  const std::vector<LeafView> views(leaves.begin(), leaves.end());
  auto growth = grow(views, {});
  if (!growth) return growth.error();
  return growth->old_size();
}

Result<Bytes> LedgerStore::leaf(std::uint64_t index) {
  auto found = leaves(index, index + 1);
  if (!found) return found.error();
  if (found->empty()) return caller_error(fmt::format("the ledger has no leaf {}", index));
  return std::move(found->front());
}

Result<Digest> LedgerStore::node(ledger::NodeId id) {
  auto found = hashes({&id, 1});
  if (!found) return found.error();
  return found->front();
}

Result<std::optional<std::string>> LedgerStore::checkpoint_at(std::uint64_t size) {
  auto found = checkpoints(size, 1);
  if (!found) return found.error();
  if (found->empty() || found->front().size != size) return std::optional<std::string>();
  return std::optional<std::string>(std::move(found->front().note));
}

Result<Digest> LedgerStore::root_at(std::uint64_t size) {
  return with_hashes<Digest>(*this, [&](const auto& reader) { return ledger::root_at(size, reader); });
}

Result<std::vector<Digest>> LedgerStore::inclusion_proof(std::uint64_t index, std::uint64_t size) {
  return with_hashes<std::vector<Digest>>(
      *this, [&](const auto& reader) { return ledger::inclusion_proof(index, size, reader); });
}

Result<std::vector<Digest>> LedgerStore::consistency_proof(std::uint64_t old_size, std::uint64_t new_size) {
  return with_hashes<std::vector<Digest>>(
      *this, [&](const auto& reader) { return ledger::consistency_proof(old_size, new_size, reader); });
}

Status LedgerStore::audit() {
  auto report = store::audit(*this);
  if (!report) return report.error();
  return report->problem.empty() ? Status() : Status(refuted(report->problem));
}

Error LedgerStore::damaged(std::string_view what) const {
  return environment_error(fmt::format("the ledger {} is damaged: {}; restore it from a copy", name(), what));
}

Error LedgerStore::no_node(ledger::NodeId id) const {
  return caller_error(fmt::format("the ledger has no complete subtree {} at level {}", id.index, id.level));
}

Error LedgerStore::uncovered(std::uint64_t size, std::uint64_t covered) const {
  return environment_error(
      fmt::format("the ledger {} has {} records, but its last checkpoint covers {}: somebody wrote to it "
                  "without its key; restore it from a copy",
                  name(), size, covered));
}

Result<ledger::CompactTree> LedgerStore::load_tree(std::uint64_t size,
                                                   const ledger::NodeReader& nodes) const {
  auto tree = ledger::CompactTree::load(size, nodes);
  if (!tree && tree.error().kind == ErrorKind::kCaller) return damaged(tree.error().message);
  return tree;
}

Result<ledger::CompactTree> LedgerStore::covered_tree(std::uint64_t size,
                                                      const std::optional<std::string>& last,
                                                      const ledger::CompactTree& cached,
                                                      const ledger::NodeReader& nodes) const {
  ledger::Checkpoint stated{.origin = {}, .root = ledger::empty_root(), .extensions = {}};
  if (last) {
    auto read = read_checkpoint(*last);
    if (!read) return damaged(read.error().message);
    stated = std::move(*read);
  }
  if (stated.size != size) return uncovered(size, stated.size);
  if (cached.size() == size && cached.root() == stated.root) return cached;
  auto tree = load_tree(size, nodes);
  if (!tree || tree->root() == stated.root) return tree;
  return damaged("its hashes do not give the root that its last checkpoint states");
}

Result<ledger::CompactTree> LedgerStore::check_state() {
  // The checkpoint before the size: another process may append in between.
  auto note = checkpoint();
  if (!note) return note.error();
  auto extent = this->extent();
  if (!extent) return extent.error();
  if (extent->leaves != extent->stated || extent->hashes != extent->stated) {
    return damaged(fmt::format("it states {} leaves, but holds {} leaves and {} leaf hashes", extent->stated,
                               extent->leaves, extent->hashes));
  }
  const auto as_damage = [this](const Error& error) {
    return error.kind == ErrorKind::kCaller ? damaged(error.message) : error;
  };
  auto tree = with_hashes<ledger::CompactTree>(
      *this, [&](const auto& reader) { return load_tree(extent->stated, reader); });
  if (!tree) return as_damage(tree.error());
  if (!*note) return tree;
  auto last = read_checkpoint(**note);
  if (!last) return as_damage(last.error());
  if (Status status = check_checkpoint(*last, extent->stated); !status) return as_damage(status.error());
  return tree;
}

Status LedgerStore::check_checkpoint(const ledger::Checkpoint& checkpoint, std::uint64_t size) {
  if (checkpoint.size > size) {
    return caller_error(
        fmt::format("the checkpoint states {} leaves, but the ledger has {}", checkpoint.size, size));
  }
  auto root = root_at(checkpoint.size);
  if (!root) return root.error();
  if (*root != checkpoint.root) {
    return caller_error(
        fmt::format("the checkpoint's root for {} leaves is not the ledger's", checkpoint.size));
  }
  return {};
}

Status check_leaves(std::span<const LeafView> leaves) {
  for (const LeafView& leaf : leaves) {
    if (std::cmp_greater(leaf.size(), bounds::kMaxLeafBytes)) {
      return caller_error(
          fmt::format("a leaf of {} bytes is over the limit of {}", leaf.size(), bounds::kMaxLeafBytes));
    }
  }
  return {};
}

Result<ledger::Checkpoint> read_checkpoint(std::string_view note) {
  auto parsed = ledger::parse_note(note);
  if (!parsed) return parsed.error();
  return ledger::parse_checkpoint(parsed->text);
}

Result<std::string> merge_notes(const std::optional<std::string>& kept, std::string_view note) {
  if (!kept) return std::string(note);
  auto first = ledger::parse_note(*kept);
  if (!first) return first.error();
  auto second = ledger::parse_note(note);
  if (!second) return second.error();
  auto merged = ledger::merge_signatures(*first, *second);
  if (!merged) return merged.error();
  return ledger::format_note(*merged);
}

}  // namespace fieldprint::store
