#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "commit/receipt.h"
#include "core/request.h"

namespace fieldprint::engine {

/// Whether an external effect may leave.
struct EffectOutcome {
  bool released = false;
  std::string reason;  ///< why it is withheld
};

using EffectId = std::uint64_t;

/// What has become of a trajectory's commits since it was last told.
struct CommitNews {
  core::SequenceId id = 0;
  std::int32_t validated = 0;              ///< the first so many commits are
  std::int32_t verdicts = 0;               ///< records that say so
  std::int32_t reexecuted = 0;             ///< commits of these that another backend computed again
  std::optional<commit::Receipt> receipt;  ///< of the answer, once it is durable
  std::optional<Error> stopped;            ///< nothing after the validated commits holds
};

struct EffectNews {
  EffectId effect = 0;
  EffectOutcome outcome;
};

/// The ledger fails, or does not answer. Trajectories wait as far ahead as they may be, and those that are
/// bound to anchors at once where it cannot be read; their commits are entered when it is back.
struct LedgerOutage {
  std::string reason;
  std::chrono::milliseconds lasted{};
  std::chrono::milliseconds patience{};  ///< after so long they stop, and nothing opens until it is back
};

struct News {
  std::vector<CommitNews> commits;
  std::vector<EffectNews> effects;
  std::optional<LedgerOutage> outage;  ///< while there is one
};

/// Where an engine's commits go, and what it hears of them. The engine's thread calls it and never waits for
/// a disk in it. A trajectory is named by its sequence; its commits count from 0: the prompt, each block of
/// context that generation fills, the answer.
class Commits {
 public:
  virtual ~Commits() = default;

  /// Whether trajectories are recorded at all.
  virtual bool records() const = 0;
  /// A trajectory begins, unless an anchor of the request is not in force.
  virtual Status open(core::SequenceId id, const core::Request& request) = 0;
  /// Its next commit, whose digests are known. May be called beyond may_run: what is too much waits inside.
  virtual void seal_prompt(core::SequenceId id, std::vector<core::BlockRecord> blocks) = 0;
  virtual void seal_segment(core::SequenceId id, std::span<const core::OutputToken> tokens,
                            const core::BlockRecord& block) = 0;
  virtual void seal_answer(core::SequenceId id, const core::Answer& answer) = 0;
  /// Nothing more of it comes, and no news of it is wanted. Effects go on to their outcome.
  virtual void end(core::SequenceId id) = 0;

  /// Whether another token may be computed.
  virtual bool may_run(core::SequenceId id) const = 0;
  /// `blocks` blocks, all that the first `commits` commits hold, had their digests after those were sealed.
  virtual void pages_checked(core::SequenceId id, std::int32_t commits, std::int64_t blocks) = 0;
  /// The commit and those after it are bad.
  virtual void refute(core::SequenceId id, std::int32_t commit, const std::string& reason) = 0;

  /// An effect that depends on the first `commits` commits, of which some may not be sealed yet.
  virtual EffectId request(core::SequenceId id, std::int32_t commits) = 0;

  /// What has happened since the last call, revocations up to the ledger's head included.
  virtual News news() = 0;
  /// For an engine that has nothing else to do: returns when there may be news, or after a few milliseconds.
  virtual void wait() = 0;
};

/// For an engine whose answers nobody records: every trajectory goes on, and every effect leaves at once.
class NoCommits final : public Commits {
 public:
  bool records() const override { return false; }
  Status open(core::SequenceId, const core::Request&) override { return {}; }
  void seal_prompt(core::SequenceId, std::vector<core::BlockRecord>) override {}
  void seal_segment(core::SequenceId, std::span<const core::OutputToken>, const core::BlockRecord&) override {
  }
  void seal_answer(core::SequenceId, const core::Answer&) override {}
  void end(core::SequenceId) override {}
  bool may_run(core::SequenceId) const override { return true; }
  void pages_checked(core::SequenceId, std::int32_t, std::int64_t) override {}
  void refute(core::SequenceId, std::int32_t, const std::string&) override {}
  EffectId request(core::SequenceId, std::int32_t) override {
    news_.effects.push_back({++effects_, {.released = true, .reason = {}}});
    return effects_;
  }
  News news() override { return std::exchange(news_, {}); }
  void wait() override {}

 private:
  EffectId effects_ = 0;
  News news_;
};

}  // namespace fieldprint::engine
