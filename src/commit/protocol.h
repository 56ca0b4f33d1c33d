#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/sha256.h"

namespace fieldprint::commit {

enum class CommitState : std::uint8_t {
  kSealed,     ///< the segment is computed; its record is on its way to the ledger
  kDurable,    ///< the record is in the ledger and survives a crash
  kValidated,  ///< so is the verdict that it is good
  kRefuted,    ///< found bad, or a cause of it was; as is everything after it in its trajectory
};

/// The commit protocol as a state machine: which trajectories may go on, which commits are validated, and which
/// effects may leave. It does no input or output and knows no threads; engine/committer.h tells it what has
/// happened. Its transitions carry the names that tests/model_check/protocol.pml gives them: that model is
/// checked exhaustively, and protocol_trace_test drives this class through the model's traces.
///
///   sealed → durable      acknowledge, in the order of sealing
///   durable → validated   validate, in that order too
///   sealed, durable → refuted   refute, of this commit or of one before it; revoke of an anchor bound
///
/// A transition that is called out of order is a CHECK.
class Protocol {
 public:
  using Trajectory = std::uint64_t;
  using Effect = std::uint64_t;
  struct Commit {
    Trajectory trajectory = 0;
    std::int32_t number = 0;  ///< within its trajectory, from 0
    auto operator<=>(const Commit&) const = default;
  };
  enum class Release : std::uint8_t { kPending, kReleased, kWithheld };

  /// `run_ahead` ≥ 1: so many commits of a trajectory may await validation before it must wait.
  explicit Protocol(std::int32_t run_ahead) : run_ahead_(run_ahead) {}

  // What has happened.
  /// A trajectory begins under these anchors. False, and nothing has begun, if one of them was revoked.
  bool open(Trajectory trajectory, std::vector<Digest> anchors);
  /// The next segment is computed. The trajectory may run.
  Commit seal(Trajectory trajectory);
  /// The commit's record is durable. Of a refuted commit nothing changes.
  void acknowledge(Commit commit);
  /// The verdict that the commit is good is durable. Of a refuted commit nothing changes.
  void validate(Commit commit);
  /// The commit is bad: it and all after it are refuted, effects that depend on them withheld, and the
  /// trajectory is stopped.
  void refute(Commit commit, const std::string& reason);
  /// Called before the revocation is acknowledged to anyone: from here on nothing that the anchor is a cause of
  /// begins, goes on, is validated or leaves.
  void revoke(const Digest& anchor, const std::string& reason);
  /// An effect that depends on every commit that the trajectory has sealed.
  Effect request(Trajectory trajectory);
  /// No further seal. The trajectory is forgotten when nothing of it is pending any more.
  void close(Trajectory trajectory);

  // What follows from it.
  /// Whether another token may be computed: not stopped, and fewer than run_ahead commits unvalidated.
  bool may_run(Trajectory trajectory) const;
  bool stopped(Trajectory trajectory) const;
  /// Why it was stopped, empty if it was not.
  const std::string& reason(Trajectory trajectory) const;
  CommitState state(Commit commit) const;
  /// Commits of the trajectory that are validated: the first so many.
  std::int32_t validated(Trajectory trajectory) const;
  std::int32_t sealed(Trajectory trajectory) const;
  /// The trajectory's first durable commit that has no verdict yet.
  std::optional<Commit> to_validate(Trajectory trajectory) const;
  bool known(Trajectory trajectory) const { return trajectories_.contains(trajectory); }
  bool revoked(const Digest& anchor) const { return revoked_.contains(anchor); }
  /// An effect is answered for once: after kReleased or kWithheld it is forgotten.
  Release take(Effect effect);

 private:
  struct Life {
    std::vector<Digest> anchors;
    std::vector<CommitState> commits;
    std::int32_t durable = 0;    ///< the first so many are durable or beyond
    std::int32_t validated = 0;  ///< the first so many are validated
    bool stopped = false;
    bool closed = false;
    std::string reason;
  };
  struct Pending {
    Trajectory trajectory = 0;
    std::int32_t needs = 0;  ///< commits that must be validated
    Release release = Release::kPending;
  };

  std::int32_t run_ahead_;
  std::map<Trajectory, Life> trajectories_;
  std::map<Effect, Pending> effects_;
  std::set<Digest> revoked_;
  Effect next_effect_ = 1;
};

}  // namespace fieldprint::commit
