#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "anchor/registry.h"
#include "base/bounds.h"
#include "commit/protocol.h"
#include "engine/chain.h"
#include "engine/commits.h"
#include "engine/reexecutor.h"
#include "engine/validator.h"
#include "store/signed_log.h"

namespace fieldprint::engine {

/// What a committer asks of the anchors' lifecycle. Safe to call from several threads.
class AnchorsInForce {
 public:
  virtual ~AnchorsInForce() = default;
  /// Takes in what the ledger has gained, and waits for it to be read; cheap when that is nothing. An error
  /// if it cannot be read.
  virtual Status poll() = 0;
  /// Whether all that the ledger is known to have gained was taken in, by memory alone. Where it was not, it
  /// will be soon without the caller.
  virtual bool fresh() = 0;
  /// Waits until that is so; an error if it cannot be read, or is not within this time.
  virtual Status await_fresh(std::chrono::milliseconds most) = 0;
  /// Of the last read.
  virtual Status readable() const = 0;
  /// Reads that succeeded: while this grows, a ledger that is never fresh only gains faster.
  virtual std::uint64_t reads() const = 0;
  /// Leaves that the caller has put into the ledger, from this index on: they need not be read.
  virtual void learn(std::uint64_t first, std::span<const store::Bytes> leaves) = 0;
  /// Leaves of the ledger that were taken in.
  virtual std::uint64_t size() const = 0;
  /// Whether the anchor may begin to influence a request, and what it is.
  virtual Result<commit::AnchorRecord> admit(const Digest& id, const anchor::Use& use) const = 0;
  /// Whether one that was admitted may go on at this time, in seconds since 1970. An environment error says
  /// that nobody knows.
  virtual Status in_force(const Digest& id, std::int64_t time) const = 0;
  /// Whether one that is not in force is so for good.
  virtual bool revoked(const Digest& id) const = 0;
};

/// Enters the commits of all trajectories in a ledger, behind the engine's back, and their verdicts when they
/// are validated; commit::Protocol says what follows. A thread takes what has gathered and appends it in one
/// go; verdicts ride along, or go by themselves when somebody waits for them or they have waited long enough.
///
/// A revocation is taken in before each append, after it and whenever the engine asks for news. A commit is
/// validated when its verdict is durable and the anchors, read up to the verdict at least, are still in
/// force.
///
/// The engine's thread never waits for the ledger to be read: when it asks for news and the ledger has gained
/// what was not taken in yet, sequences that are bound to anchors do not run, and their effects do not leave,
/// until a step that finds it taken in.
///
/// While the ledger fails its thread tries again, with the same leaves, which it looks for first: a database
/// that was lost while it committed may have them. Nothing else changes but that trajectories get no further
/// than they may run ahead. After Options::patience every trajectory stops with what is validated by then,
/// and none opens, until the ledger has taken up what was sealed and what became of it: of each commit one
/// verdict, be it the good one that was under way, which releases nothing any more.
class Committer final : public Commits {
 public:
  struct Options {
    std::int32_t run_ahead = 16;  ///< commits of a trajectory that may await validation, ≥ 1
    /// Tokens computed again on another backend, as a share of those committed (Validator); 1: every commit
    /// is checked so. Below 1, sampled commits that find too many waiting (bounds::kMaxReexecutions) are not;
    /// their verdicts say so.
    double reexecute_share = 1.0 / 512;
    std::optional<Digest> salt{};                  ///< decides which; by default nobody knows it
    std::chrono::milliseconds verdict_delay{250};  ///< the longest that a verdict waits for records
    /// For how long the ledger may fail before trajectories stop; of what hangs, at least a second.
    std::chrono::milliseconds patience{bounds::kLedgerPatience};
  };

  /// All arguments must outlive the committer. `backend` is the name of the engine's.
  static Result<std::unique_ptr<Committer>> create(store::SignedLog& log, AnchorsInForce& anchors,
                                                   const weights::ModelFile& file, std::string_view backend,
                                                   const Options& options);
  /// Appends what was sealed, with one attempt; verdicts that are not due by then are not given.
  ~Committer() override;
  Committer(const Committer&) = delete;
  Committer& operator=(const Committer&) = delete;

  bool records() const override { return true; }
  Status open(core::SequenceId id, const core::Request& request) override;
  void seal_prompt(core::SequenceId id, std::vector<core::BlockRecord> blocks) override;
  void seal_segment(core::SequenceId id, std::span<const core::OutputToken> tokens,
                    const core::BlockRecord& block) override;
  void seal_answer(core::SequenceId id, const core::Answer& answer) override;
  void end(core::SequenceId id) override;
  bool may_run(core::SequenceId id) const override;
  void pages_checked(core::SequenceId id, std::int32_t commits, std::int64_t blocks) override;
  void refute(core::SequenceId id, std::int32_t commit, const std::string& reason) override;
  EffectId request(core::SequenceId id, std::int32_t commits) override;
  News news() override;
  void wait() override;

 private:
  using Clock = std::chrono::steady_clock;
  using Commit = commit::Protocol::Commit;

  struct Gate {
    EffectId effect = 0;
    std::int32_t needs = 0;                                  ///< commits to be sealed
    std::optional<commit::Protocol::Effect> requested = {};  ///< once they are
  };
  /// A trajectory, from its opening until nothing of it is pending.
  struct Life {
    std::vector<Digest> anchors;
    bool impatient = false;        ///< its text waits for validation
    std::shared_ptr<Chain> chain;  ///< the thread's alone
    std::deque<Sealed> waiting;    ///< until fewer commits are unvalidated
    std::vector<Gate> gates;
    bool ended = false;   ///< the engine has dropped it
    bool closed = false;  ///< so the protocol was told, when nothing waited any more
    CommitNews news;      ///< as a whole; `receipt` and `stopped` until they are told
    bool stopped = false;
    bool unbound = false;     ///< an anchor of it left force
    std::int32_t judged = 0;  ///< commits before this one have good verdicts, entered or under way
    std::optional<std::int32_t> bad_from;  ///< those from here on have their bad verdicts
  };
  /// A sealed commit on its way to the ledger.
  struct Queued {
    Commit commit;
    std::shared_ptr<Chain> chain;
    Sealed sealed;
  };
  /// The commits from `first` up to and without `end`, all of them sealed, are bad.
  struct Refusal {
    Commit first;
    std::int32_t end = 0;
    std::shared_ptr<Chain> chain;
    std::string reason;
  };
  /// Where a trajectory ends. `sealed` is read before the protocol is told, which may forget it then.
  struct Cut {
    Commit first;
    std::int32_t sealed = 0;
    std::int32_t judged = 0;  ///< commits before this one keep their good verdicts
  };
  /// What one append takes up.
  struct Batch {
    std::uint64_t head = 0;  ///< leaves of the ledger whose revocations were heeded before it
    std::vector<Queued> records;
    std::vector<Verdict> verdicts;
    std::vector<Refusal> refusals;
    std::vector<store::Bytes> leaves = {};               ///< of records, then of the verdicts' records
    std::vector<Digest> heads = {};                      ///< leaf hashes of records
    std::vector<std::optional<History>> histories = {};  ///< of records; set where it is to be computed again
    std::vector<std::optional<commit::Receipt>> receipts = {};  ///< of records
    store::SignedLog::Unsettled unsettled = {};
    bool appended = false;
  };
  /// How long something of the ledger has not come, and why.
  struct Waiting {
    Clock::time_point since;
    std::optional<Error> error = {};

    /// Whether that is more than the time that it takes.
    bool out(Clock::time_point now) const;
  };

  Committer(store::SignedLog& log, AnchorsInForce& anchors, const weights::ModelFile& file,
            const Options& options);

  void seal(core::SequenceId id, Sealed sealed);
  bool wants_reexecution(Commit commit) const;
  void note_reexecuted(Commit commit, const Status& outcome);

  // mutex_ is held.
  void advance(core::SequenceId id, Life& life);
  void refute_commit(Commit commit, const std::string& reason);
  void stop(const Cut& cut, Life& life, Error error);
  void heed_ledger(bool fresh);
  void heed_anchors();
  Status standing(const Digest& anchor) const;
  std::optional<LedgerOutage> outage() const;
  void take_effects(News& news);
  void forget_if_over(core::SequenceId id);
  void note_due();
  bool urgent() const;
  bool has_work() const;
  Batch take_batch();
  void note_appended(Batch& batch);
  void stop_all(const Error& error);
  void fail(const Error& error);

  // The thread's. The first two hold it where they do not wait.
  void run();
  bool enter(Batch& batch, std::unique_lock<std::mutex>& lock);
  bool needs_reading() const;
  void encode(Batch& batch);
  bool has_room_to_reexecute(const Batch& batch) const;
  void encode_verdicts(Batch& batch);
  Status append(Batch& batch);

  store::SignedLog& log_;
  AnchorsInForce& anchors_;
  const weights::ModelFile& file_;
  Options options_;
  std::string other_backend_;  ///< where commits are computed again

  mutable std::mutex mutex_;  // guards all below but the threads
  std::condition_variable wake_;
  std::condition_variable changed_;
  commit::Protocol protocol_;
  Validator validator_;
  std::map<core::SequenceId, Life> lives_;
  std::map<Digest, std::int64_t> bound_;  ///< anchors, and how many trajectories they are a cause of
  std::set<core::SequenceId> told_next_;  ///< of whom there is news
  std::deque<Queued> queue_;
  std::vector<Refusal> refusals_;
  std::optional<Error> failure_;     ///< why nothing opens
  bool over_ = false;                ///< for good
  std::optional<Waiting> entering_;  ///< for the batch under way to be durable
  std::optional<Waiting> stale_;     ///< for the ledger to be read, since it was last
  std::uint64_t reads_ = 0;          ///< of the anchors, when the engine last asked for news
  Clock::time_point due_since_{};
  EffectId effects_ = 0;
  bool engine_waits_ = false;
  bool stop_ = false;

  std::unique_ptr<Reexecutor> reexecutor_;
  std::thread thread_;
};

}  // namespace fieldprint::engine
