#include "store/signed_log.h"

#include <algorithm>
#include <utility>

#include "base/bounds.h"
#include "base/fault_point.h"
#include "ledger/checkpoint.h"
#include "ledger/cosignature.h"

namespace fieldprint::store {

// What one transaction committed, for all whose leaves are in it.
struct SignedLog::Group {
  ledger::Growth growth;
  std::string checkpoint;
};

// A thread that waits for its leaves to be durable.
struct SignedLog::Waiting {
  std::vector<LeafView> leaves;
  std::size_t bytes = 0;
  std::condition_variable wake = {};
  bool leads = false;
  bool done = false;
  std::uint64_t first = 0;  // index of its first leaf
  Result<std::shared_ptr<const Group>> group = std::shared_ptr<const Group>();
  Unsettled unsettled = {};  // the same, where the group failed and may be there
};

Result<std::unique_ptr<SignedLog>> SignedLog::open(std::unique_ptr<LedgerStore> store,
                                                   ledger::SignerKey signer) {
  std::unique_ptr<SignedLog> log(new SignedLog(std::move(store), std::move(signer)));
  auto last = log->last_checkpoint();
  if (!last) return last.error();
  if (*last) {
    auto stated = read_checkpoint(**last);
    CHECK(stated.ok(), "it was opened");
    log->remember(std::move(**last), stated->size, stated->root);
  }
  return log;
}

// Leaves and their checkpoint are committed together: leaves beyond the last one were not written by this
// key.
Result<std::optional<std::string>> SignedLog::last_checkpoint() {
  // The size before the checkpoint: another process may append in between.
  auto size = store_->size();
  if (!size) return size.error();
  auto last = store_->checkpoint();
  if (!last) return last.error();
  std::uint64_t covered = 0;
  if (*last) {
    auto opened = ledger::open_checkpoint(**last, {&verifier(), 1});
    if (!opened) {
      return caller_error(
          fmt::format("the ledger's last checkpoint was not signed by {}: {}; use the key it began with",
                      verifier().text(), opened.error().message));
    }
    covered = opened->size;
  }
  if (covered >= *size) return last;
  return store_->uncovered(*size, covered);
}

// A thread that found its leaves in the ledger may be overtaken by one that appends.
void SignedLog::remember(std::string note, std::uint64_t size, const Digest& root) {
  const std::lock_guard lock(said_mutex_);
  if (size < said_.size) return;
  said_ = {std::move(note), size, root};
}

// That the last checkpoint states the tree, the store has checked, within the transaction if it grows.
Status SignedLog::vouch(const Growing& growing) {
  // Reading nodes takes locks of the store's, so that nothing is held meanwhile.
  const Said said = [&] {
    const std::lock_guard lock(said_mutex_);
    return said_;
  }();
  if (said.note.empty() && !growing.last) return {};
  if (growing.last && *growing.last == said.note) return {};
  std::uint64_t covered = 0;
  if (growing.last) {
    auto opened = ledger::open_checkpoint(*growing.last, {&verifier(), 1});
    if (!opened) {
      return environment_error(
          fmt::format("the last checkpoint of {} was not signed by {}: {}; nothing is added to it",
                      store_->name(), verifier().text(), opened.error().message));
    }
    covered = opened->size;
  }
  if (covered >= said.size) {
    auto root = ledger::root_at(said.size, growing.nodes);
    if (!root) return root.error();
    if (*root == said.root) return {};
  }
  return environment_error(fmt::format(
      "the ledger {} does not continue the {} records that this process has seen in it: it went back or "
      "was replaced; restore it from a copy",
      store_->name(), said.size));
}

Result<std::string> SignedLog::sign(const Growing& growing) {
  if (Status status = vouch(growing); !status) return status.error();
  return ledger::sign_checkpoint(growing.size, growing.root, signer_);
}

Result<std::vector<LoggedLeaf>> SignedLog::append(std::span<const Bytes> leaves, Unsettled& unsettled) {
  if (leaves.empty()) return caller_error("there is no leaf to append");
  if (!unsettled) return append_new(leaves, unsettled);
  auto found = find(leaves, *unsettled);
  if (!found) return found.error();
  unsettled.reset();
  if (*found) return std::move(**found);
  return append_new(leaves, unsettled);
}

// Whether an attempt that put the leaves there, if it succeeded, has done so. A ledger's leaves are followed
// by what others append, so the checkpoint is the last one.
Result<std::optional<std::vector<LoggedLeaf>>> SignedLog::find(std::span<const Bytes> leaves,
                                                               std::uint64_t first) {
  if (Status status = store_->settle(); !status) return status.error();
  auto there = store_->leaves(first, first + leaves.size());
  if (!there) return there.error();
  if (!std::ranges::equal(*there, leaves)) return std::optional<std::vector<LoggedLeaf>>();
  auto last = last_checkpoint();
  if (!last) return last.error();
  CHECK(last->has_value(), "a checkpoint covers every leaf");
  auto stated = read_checkpoint(**last);
  CHECK(stated.ok(), "it was opened");
  const Growing there_now{*last, stated->size, stated->root,
                          [this](ledger::NodeId id) { return store_->node(id); }};
  if (Status status = vouch(there_now); !status) return status.error();
  std::vector<LoggedLeaf> logged;
  for (std::uint64_t index = first; index < first + leaves.size(); ++index) {
    auto proof = store_->inclusion_proof(index, stated->size);
    if (!proof) return proof.error();
    logged.push_back({index, stated->size, std::move(*proof), **last});
  }
  remember(std::move(**last), stated->size, stated->root);
  return std::optional(std::move(logged));
}

Result<std::vector<LoggedLeaf>> SignedLog::append_new(std::span<const Bytes> leaves, Unsettled& unsettled) {
  Waiting me{.leaves = {leaves.begin(), leaves.end()}};
  // Checked here, so that one thread's mistake does not fail the others' group.
  if (Status status = check_leaves(me.leaves); !status) return status.error();
  for (const LeafView& leaf : me.leaves) me.bytes += leaf.size();
  {
    std::unique_lock lock(mutex_);
    queue_.push_back(&me);
    if (led_) me.wake.wait(lock, [&] { return me.done || me.leads; });
    if (!me.done) lead(lock);
  }
  if (!me.group) {
    unsettled = me.unsettled;
    return me.group.error();
  }
  // Each thread makes its own proofs, while the next group is being committed.
  const Group& group = **me.group;
  std::vector<LoggedLeaf> logged;
  logged.reserve(leaves.size());
  for (std::uint64_t index = me.first; index < me.first + leaves.size(); ++index) {
    logged.push_back({index, group.growth.size(), group.growth.inclusion_proof(index), group.checkpoint});
  }
  return logged;
}

// Commits the group at the front, which holds the caller's leaves, and hands the lead on.
// An exception, which nothing here is meant to throw, stops the process: otherwise those who wait for the
// leader would wait for ever, and nobody would know what was committed.
void SignedLog::lead(std::unique_lock<std::mutex>& lock) noexcept {
  led_ = true;
  const std::vector<Waiting*> group = take_group();
  lock.unlock();
  Unsettled first;
  auto committed = commit(group, first);
  lock.lock();
  std::uint64_t next = committed ? (*committed)->growth.old_size() : first.value_or(0);
  for (Waiting* waiting : group) {
    waiting->group = committed;
    waiting->first = next;
    if (first) waiting->unsettled = next;
    next += waiting->leaves.size();
    waiting->done = true;
    waiting->wake.notify_one();
  }
  led_ = !queue_.empty();
  if (!led_) return;
  queue_.front()->leads = true;
  queue_.front()->wake.notify_one();
}

std::vector<SignedLog::Waiting*> SignedLog::take_group() {
  std::vector<Waiting*> group;
  std::size_t leaves = 0;
  std::size_t bytes = 0;
  while (!queue_.empty()) {
    Waiting* next = queue_.front();
    leaves += next->leaves.size();
    bytes += next->bytes;
    const bool full =
        std::cmp_greater(leaves, bounds::kMaxGroupLeaves) || std::cmp_greater(bytes, bounds::kMaxGroupBytes);
    if (full && !group.empty()) break;
    group.push_back(next);
    queue_.pop_front();
  }
  return group;
}

Result<std::shared_ptr<const SignedLog::Group>> SignedLog::commit(std::span<Waiting* const> waiting,
                                                                  Unsettled& unsettled) {
  std::vector<LeafView> leaves;
  for (const Waiting* one : waiting) leaves.insert(leaves.end(), one->leaves.begin(), one->leaves.end());
  std::string checkpoint;
  auto growth = store_->grow(leaves, [&](const Growing& growing) {
    auto note = sign(growing);
    if (!note) return note;
    checkpoint = *note;
    unsettled = growing.size - leaves.size();
    return note;
  });
  if (!growth) return growth.error();
  unsettled.reset();
  remember(checkpoint, growth->size(), growth->root());
  CRASH_POINT("log.before_acknowledgement");
  return std::shared_ptr<const Group>(new Group{std::move(*growth), std::move(checkpoint)});
}

Result<std::string> SignedLog::checkpoint() {
  auto last = last_checkpoint();
  if (!last) return last.error();
  if (!*last) {
    auto sealed = store_->grow({}, [this](const Growing& growing) { return sign(growing); });
    if (!sealed) return sealed.error();
    last = last_checkpoint();
    if (!last) return last.error();
    CHECK(last->has_value());
  }
  return **last;
}

Result<std::string> SignedLog::accept_cosignatures(std::string_view answer,
                                                   std::span<const ledger::VerifierKey> witnesses) {
  auto last = checkpoint();
  if (!last) return last;
  auto last_note = ledger::parse_note(*last);
  if (!last_note) return last_note.error();
  auto cosigned = ledger::parse_cosigned(answer, *last_note);
  if (!cosigned) return cosigned.error();
  auto about = ledger::parse_checkpoint(cosigned->text);
  if (!about) return about.error();
  auto kept = store_->checkpoint_at(about->size);
  if (!kept) return kept.error();
  auto kept_note = *kept ? ledger::parse_note(**kept) : Result<ledger::SignedNote>(ledger::SignedNote());
  if (!kept_note) return kept_note.error();
  if (kept_note->text != cosigned->text) {
    return refuted(
        fmt::format("the cosigned checkpoint of {} leaves is none that this ledger gave out", about->size));
  }
  auto found = ledger::cosignatures_of(*cosigned, witnesses);
  if (!found) return found.error();
  if (found->empty()) return refuted("there is no cosignature by a known witness");
  std::erase_if(cosigned->signatures, [&](const ledger::NoteSignature& signature) {
    return std::none_of(found->begin(), found->end(),
                        [&](const auto& one) { return signature.names(one.witness); });
  });
  if (Status status = store_->keep_checkpoint(ledger::format_note(*cosigned)); !status) return status.error();
  auto now = store_->checkpoint_at(about->size);
  if (!now) return now.error();
  CHECK(now->has_value());
  return **now;
}

}  // namespace fieldprint::store
