#include <algorithm>
#include <utility>

#include "base/bounds.h"
#include "base/fault_point.h"
#include "base/utf8.h"
#include "commit/envelope.h"
#include "commit/segment.h"
#include "engine/committer.h"
#include "ledger/merkle.h"

/// The committer's thread: takes what has gathered, appends it, and tells the protocol.
namespace fieldprint::engine {
namespace {

// A ledger that failed is tried again after these.
constexpr std::chrono::milliseconds kFirstRetry{20};
constexpr std::chrono::milliseconds kLastRetry{2000};

}  // namespace

void Committer::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    while (!has_work()) {
      if (stop_) return;
      if (validator_.due()) {
        wake_.wait_until(lock, due_since_ + options_.verdict_delay);
      } else {
        wake_.wait(lock);
      }
    }
    lock.unlock();
    (void)anchors_.poll();
    lock.lock();
    // Before: what another thread takes in from here on may be heeded too late for this batch.
    const std::uint64_t head = anchors_.size();
    heed_anchors();
    Batch batch = take_batch();
    batch.head = head;
    lock.unlock();
    encode(batch);
    lock.lock();
    if (enter(batch, lock)) note_appended(batch);
    changed_.notify_all();
  }
}

/// Makes the batch durable, and reads the ledger up to it, however often that takes; false if nothing will.
bool Committer::enter(Batch& batch, std::unique_lock<std::mutex>& lock) {
  entering_ = {.since = Clock::now()};
  for (auto delay = kFirstRetry;; delay = std::min(2 * delay, kLastRetry)) {
    const bool last = stop_;
    lock.unlock();
    const Status appended = append(batch);
    // The verdicts count by the anchors as they were when these became durable, or later.
    const Status read = anchors_.poll();
    lock.lock();
    if (appended) {
      entering_.reset();
      if (queue_.empty() && refusals_.empty()) failure_.reset();
      if (read || !needs_reading()) return true;
    } else if (entering_->error || appended.error().kind == ErrorKind::kEnvironment) {
      entering_->error = appended.error();
    }
    if (last || (!appended && !entering_->error)) {
      fail(appended ? read.error() : appended.error());
      return false;
    }
    changed_.notify_all();
    wake_.wait_for(lock, delay, [&] { return stop_; });
  }
}

/// Whether something that is bound to an anchor goes on.
bool Committer::needs_reading() const {
  return std::ranges::any_of(
      lives_, [](const auto& each) { return !each.second.anchors.empty() && !each.second.stopped; });
}

bool Committer::has_work() const {
  if (over_) return false;
  if (!queue_.empty() || !refusals_.empty()) return true;
  if (!validator_.due()) return false;
  return stop_ || urgent() || Clock::now() >= due_since_ + options_.verdict_delay;
}

/// Whether somebody waits for verdicts.
bool Committer::urgent() const {
  if (engine_waits_) return true;
  return std::ranges::any_of(lives_, [&](const auto& each) {
    const auto& [id, life] = each;
    const bool held_up = !life.stopped && !life.ended && !protocol_.may_run(id);
    return life.impatient || !life.gates.empty() || held_up;
  });
}

void Committer::note_due() {
  if (due_since_ == Clock::time_point() && validator_.due()) due_since_ = Clock::now();
}

Committer::Batch Committer::take_batch() {
  Batch batch;
  const std::size_t most = static_cast<std::size_t>(bounds::kMaxGroupLeaves) / 2;
  while (!queue_.empty() && batch.records.size() < most) {
    batch.records.push_back(std::move(queue_.front()));
    queue_.pop_front();
  }
  batch.verdicts = validator_.take_due();
  for (const Verdict& verdict : batch.verdicts) {
    lives_.at(verdict.commit.trajectory).judged = verdict.commit.number + 1;
  }
  due_since_ = {};
  if (!queue_.empty()) return batch;
  // Every commit that they are about is in the ledger or in this batch.
  batch.refusals = std::exchange(refusals_, {});
  return batch;
}

void Committer::encode(Batch& batch) {
  for (const Queued& record : batch.records) {
    auto leaf = record.chain->next(record.sealed);
    CHECK(leaf.ok(), "a commit cannot be recorded: {}", leaf.error().message);
    const Digest& hash = record.chain->leaves().back();
    batch.heads.push_back(hash);
    std::optional<History>& history = batch.histories.emplace_back();
    if (validator_.samples(hash, record.chain->last_share()) && has_room_to_reexecute(batch)) {
      history = record.chain->history();
    }
    batch.leaves.push_back(std::move(*leaf));
  }
  encode_verdicts(batch);
}

/// Only this thread adds to what waits, so there is room yet when the batch is appended.
bool Committer::has_room_to_reexecute(const Batch& batch) const {
  if (options_.reexecute_share >= 1) return true;
  const auto taken =
      std::ranges::count_if(batch.histories, [](const auto& each) { return each.has_value(); });
  return reexecutor_->outstanding() + taken < bounds::kMaxReexecutions;
}

void Committer::encode_verdicts(Batch& batch) {
  const auto add = [&](commit::VerdictRecord record) {
    record.head = batch.head;
    const std::vector<Digest> all = std::exchange(record.commits, {});
    const auto most = static_cast<std::size_t>(bounds::kMaxVerdictCommits);
    for (std::size_t i = 0; i < all.size(); i += most) {
      const auto part = std::span(all).subspan(i, std::min(most, all.size() - i));
      record.commits.assign(part.begin(), part.end());
      auto leaf = commit::encode(record);
      CHECK(leaf.ok(), "a verdict cannot be recorded: {}", leaf.error().message);
      batch.leaves.push_back(std::move(*leaf));
    }
  };
  std::map<std::string, commit::VerdictRecord> good;
  std::set<std::pair<core::SequenceId, std::string>> counted;
  for (const Verdict& verdict : batch.verdicts) {
    commit::VerdictRecord& record = good[verdict.reexecuted_on];
    record.good = true;
    record.reexecuted_on = verdict.reexecuted_on;
    record.commits.push_back(verdict.leaf);
    if (!counted.insert({verdict.commit.trajectory, verdict.reexecuted_on}).second) continue;
    record.pages_checked += static_cast<std::uint32_t>(verdict.blocks);
  }
  for (auto& [backend, record] : good) add(std::move(record));
  for (const Refusal& refusal : batch.refusals) {
    const std::vector<Digest>& leaves = refusal.chain->leaves();
    // It may be the text of a database or of the system.
    std::string reason =
        utf8_prefix(refusal.reason, static_cast<std::size_t>(bounds::kMaxVerdictReasonBytes));
    if (reason.empty()) reason = "for no reason given";
    commit::VerdictRecord record;
    CHECK(std::cmp_less_equal(refusal.end, leaves.size()), "commit {} is not recorded", refusal.end - 1);
    record.commits.assign(leaves.begin() + refusal.first.number, leaves.begin() + refusal.end);
    record.reason = std::move(reason);
    add(std::move(record));
  }
}

Status Committer::append(Batch& batch) {
  if (batch.leaves.empty() || batch.appended) return {};
  if (Status status = FAULT_POINT("commits.before_append"); !status) return status;
  auto logged = log_.append(batch.leaves, batch.unsettled);
  if (!logged) return logged.error();
  batch.appended = true;
  anchors_.learn(logged->front().index, batch.leaves);
  CRASH_POINT("commits.recorded");
  if (batch.leaves.size() > batch.records.size()) CRASH_POINT("verdicts.recorded");
  for (std::size_t i = 0; i < batch.records.size(); ++i) {
    std::optional<commit::Receipt>& receipt = batch.receipts.emplace_back();
    const std::optional<commit::Body>& body = batch.records[i].chain->body();
    if (!std::holds_alternative<SealedAnswer>(batch.records[i].sealed)) continue;
    store::LoggedLeaf& entry = (*logged)[i];
    receipt = {.body = *body,
               .leaf_index = entry.index,
               .tree_size = entry.tree_size,
               .inclusion_proof = std::move(entry.inclusion_proof),
               .checkpoint = std::move(entry.checkpoint),
               .verifier_key = log_.verifier().text(),
               .field_checks = {}};
    const Status sealed = commit::seal(*receipt);
    CHECK(sealed.ok(), "a receipt cannot be sealed: {}", sealed.error().message);
  }
  return {};
}

void Committer::note_appended(Batch& batch) {
  heed_anchors();
  for (std::size_t i = 0; i < batch.records.size(); ++i) {
    const Commit commit = batch.records[i].commit;
    const Digest& leaf = batch.heads[i];
    std::optional<History>& history = batch.histories[i];
    protocol_.acknowledge(commit);
    const auto found = lives_.find(commit.trajectory);
    if (found != lives_.end()) {
      Life& life = found->second;
      life.news.receipt = std::move(batch.receipts[i]);
      if (life.news.receipt) told_next_.insert(commit.trajectory);
    }
    const bool pending =
        protocol_.known(commit.trajectory) && protocol_.state(commit) == commit::CommitState::kDurable;
    if (pending) validator_.durable(commit, leaf, history.has_value());
    if (pending && history) reexecutor_->add(commit, std::move(*history));
  }
  std::set<std::pair<core::SequenceId, std::string>> counted;
  for (const Verdict& verdict : batch.verdicts) {
    const core::SequenceId id = verdict.commit.trajectory;
    protocol_.validate(verdict.commit);
    const auto found = lives_.find(id);
    if (found == lives_.end()) continue;
    Life& life = found->second;
    life.news.verdicts += counted.insert({id, verdict.reexecuted_on}).second ? 1 : 0;
    life.news.reexecuted += verdict.reexecuted_on.empty() ? 0 : 1;
    told_next_.insert(id);
    advance(id, life);
    forget_if_over(id);
  }
  note_due();
}

/// Every trajectory ends with what is validated, and nothing opens.
void Committer::stop_all(const Error& error) {
  failure_ = error;
  for (auto& [id, life] : lives_) {
    life.waiting.clear();
    if (protocol_.known(id)) {
      const Cut cut{{id, protocol_.validated(id)}, protocol_.sealed(id), life.judged};
      const bool pending = cut.first.number < cut.sealed;
      if (pending && protocol_.state(cut.first) != commit::CommitState::kRefuted) {
        protocol_.refute(cut.first, error.message);
      }
      stop(cut, life, error);
    }
    advance(id, life);
  }
}

/// The ledger will never take what it must take next.
void Committer::fail(const Error& error) {
  stop_all(error);
  over_ = true;
  entering_.reset();
  queue_.clear();
  refusals_.clear();
}

/// Whether a verdict about the commit is due some day, and somebody waits for it.
bool Committer::wants_reexecution(Commit commit) const {
  const std::lock_guard lock(mutex_);
  const auto found = lives_.find(commit.trajectory);
  if (found == lives_.end() || !protocol_.known(commit.trajectory)) return false;
  if (found->second.ended && found->second.gates.empty()) return false;
  return protocol_.state(commit) == commit::CommitState::kDurable;
}

void Committer::note_reexecuted(Commit commit, const Status& outcome) {
  {
    const std::lock_guard lock(mutex_);
    if (!outcome && outcome.error().kind == ErrorKind::kRefuted) {
      refute_commit(commit, outcome.error().message);
    } else {
      validator_.reexecuted(commit, outcome ? other_backend_ : std::string());
      note_due();
    }
  }
  wake_.notify_one();
}

}  // namespace fieldprint::engine
