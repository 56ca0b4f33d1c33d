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

/// The commit protocol as a state machine: which trajectories may go on, which commits are validated, and
/// which effects may leave. It does no input or output and knows no threads; engine/committer.h tells it what
/// has happened. Its transitions carry the names that tests/model_check/protocol.pml gives them: that model
/// is checked exhaustively, and protocol_trace_test drives this class through the model's traces.
///
///   sealed → durable      acknowledge, in the order of sealing
///   durable → validated   validate, in that order too
///   sealed, durable → refuted   refute, of this commit or of one before it; revoke or suspend of an anchor
///
/// Validated and refuted are final. A transition that is called out of order is a CHECK. A crash is the end
/// of this object: trajectories that were under way are lost, and with them their effects.
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
  explicit Protocol(std::int32_t run_ahead);

  // What has happened.
  /// A trajectory begins under these anchors; its number is never used again. False, and nothing has begun,
  /// if one of them was revoked.
  bool open(Trajectory trajectory, std::vector<Digest> anchors);
  /// The next segment is computed. The trajectory may run.
  Commit seal(Trajectory trajectory);
  /// The commit's record is durable. Of a refuted commit, or of a trajectory that is forgotten, nothing
  /// changes.
  void acknowledge(Commit commit);
  /// The verdict that the commit is good is durable, and every revocation before it in the ledger has been
  /// told. Of a refuted commit, or of a trajectory that is forgotten, nothing changes.
  void validate(Commit commit);
  /// The commit, which is not validated, is bad: it and all after it are refuted, effects that depend on them
  /// withheld, and the trajectory is stopped; those before it go their way. Of a refuted commit, or of a
  /// trajectory that is forgotten, nothing changes.
  void refute(Commit commit, const std::string& reason);
  /// Called before the revocation is acknowledged to anyone: from here on nothing that the anchor is a cause
  /// of begins, goes on, is validated or leaves. Validated commits stay so; effects not yet taken are
  /// withheld.
  void revoke(const Digest& anchor, const std::string& reason);
  /// The anchor is not in force now, and may be again: it expired by a clock that may be wrong, or nobody can
  /// read whether it was revoked. What is open under it ends as revoke ends it; what opens later does not.
  void suspend(const Digest& anchor, const std::string& reason);
  /// An effect that depends on every commit that the trajectory, which is not closed, has sealed.
  Effect request(Trajectory trajectory);
  /// No further seal or request. The trajectory is forgotten when nothing of it is pending any more: when its
  /// commits are validated or refuted and its effects taken.
  void close(Trajectory trajectory);

  // What follows from it, for trajectories that are known.
  /// Whether another token may be computed: neither stopped nor closed, and fewer than run_ahead commits
  /// unvalidated.
  bool may_run(Trajectory trajectory) const;
  /// Whether one of its commits was refuted or an anchor of it revoked or suspended.
  bool stopped(Trajectory trajectory) const;
  /// Why it was stopped, the first reason of several; empty if it was not.
  const std::string& reason(Trajectory trajectory) const;
  CommitState state(Commit commit) const;
  /// Commits of the trajectory that are validated: the first so many.
  std::int32_t validated(Trajectory trajectory) const;
  std::int32_t sealed(Trajectory trajectory) const;
  /// The trajectory's first durable commit that has no verdict yet.
  std::optional<Commit> to_validate(Trajectory trajectory) const;
  bool known(Trajectory trajectory) const { return trajectories_.contains(trajectory); }
  bool revoked(const Digest& anchor) const { return revoked_.contains(anchor); }

  /// release or withhold. An effect is answered for once: after kReleased or kWithheld it is forgotten, and a
  /// closed trajectory with its last one.
  Release take(Effect effect);

 private:
  /// Of the commits [0, sealed), [0, validated) are validated, [validated, durable) durable, and from
  /// `refuted` on, which is never below `validated`, refuted.
  struct Life {
    std::vector<Digest> anchors;
    std::int32_t sealed = 0;
    std::int32_t durable = 0;
    std::int32_t validated = 0;
    std::optional<std::int32_t> refuted;  ///< set where the trajectory is stopped
    bool revoked = false;                 ///< an anchor was, or suspended
    bool closed = false;
    std::int32_t effects = 0;  ///< requested and not yet taken
    std::string reason;
  };
  struct Pending {
    Trajectory trajectory = 0;
    std::int32_t needs = 0;  ///< commits that must be validated
  };

  const Life& life_of(Trajectory trajectory) const;
  Life& life_of(Trajectory trajectory);
  /// The life of a commit's trajectory, or null if it is forgotten or the commit refuted.
  Life* life_concerned(Commit commit);
  void forget_if_settled(Trajectory trajectory);

  std::int32_t run_ahead_;
  std::map<Trajectory, Life> trajectories_;
  std::map<Effect, Pending> effects_;
  std::set<Digest> revoked_;
  Effect next_effect_ = 1;
};

}  // namespace fieldprint::commit
