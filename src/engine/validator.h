#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/sha256.h"
#include "commit/protocol.h"

namespace fieldprint::engine {

/// A commit of which every check has come out well.
struct Verdict {
  commit::Protocol::Commit commit;
  Digest leaf{};
  std::int64_t blocks = 0;    ///< hashed again for it
  std::string reexecuted_on;  ///< empty: it was not among the sampled ones
};

/// What is known of durable commits that have no verdict yet, and so which verdicts are due: when a commit is
/// durable, its pages were checked, and another backend has computed it again if it is sampled; in order of
/// their trajectory. Revocations are the protocol's business. Knows no threads.
class Validator {
 public:
  using Trajectory = commit::Protocol::Trajectory;
  using Commit = commit::Protocol::Commit;

  /// With a share of 1 every commit is sampled. With a smaller one they are so that as many tokens are
  /// computed again as this share of those that are committed: checking a commit computes all before it too,
  /// so the further into its trajectory, the rarer it is sampled, and long contexts cost no more than short
  /// ones. Which they are follows from hashes of their leaves and `salt`, which nobody else knows: the same
  /// for the same salt, and not to be foreseen by whoever makes the commits.
  Validator(double share, const Digest& salt) : share_(share), salt_(salt) {}

  /// `own`: the commit's tokens as a share of those that have to be computed to check it, 0 … 1.
  bool samples(const Digest& leaf, double own) const;

  /// The next commit of its trajectory is durable. One that is sampled waits until it is computed again.
  void durable(Commit commit, const Digest& leaf, bool sampled);
  /// `blocks` blocks, all that the first `commits` hold, had their digests after those were sealed.
  void pages_checked(Trajectory trajectory, std::int32_t commits, std::int64_t blocks);
  /// A sampled commit is good, or was cut off; an empty name says that it could not be computed again.
  void reexecuted(Commit commit, const std::string& backend);
  /// The commit and those after it get no verdict here any more.
  void cut(Commit commit);
  void forget(Trajectory trajectory) { trajectories_.erase(trajectory); }

  bool due() const;
  /// The verdicts that are due, which are forgotten here.
  std::vector<Verdict> take_due();

 private:
  struct Check {
    Digest leaf{};
    bool sampled = false;
    bool reexecuted = false;
    std::string backend;
  };
  struct Life {
    std::int32_t first = 0;  ///< number of the first of `checks`
    std::int32_t pages = 0;  ///< so many commits had their pages checked
    std::int64_t blocks = 0;
    std::vector<Check> checks;  ///< durable, without a verdict

    bool due() const;
  };

  double share_;
  Digest salt_;
  std::map<Trajectory, Life> trajectories_;
};

}  // namespace fieldprint::engine
