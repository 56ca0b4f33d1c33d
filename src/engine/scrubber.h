#pragma once

#include <chrono>
#include <vector>

#include "kv/prefix_cache.h"

namespace fieldprint::engine {

/// Has resident blocks hashed again, round and round, in a small share of the engine's time.
class Scrubber {
 public:
  using Clock = std::chrono::steady_clock;

  /// `share` of the time that steps take; 0: never. `at_once`: blocks of which fewer take as long, at
  /// least 1.
  Scrubber(kv::PrefixCache& cache, double share, std::int64_t at_once)
      : cache_(cache), share_(share), at_once_(at_once) {}

  /// After a step that took `step`: begins to check as many sealed blocks as the time saved up allows, unless
  /// its last check is still under way.
  void scrub(Clock::duration step);
  /// What came of a check, this scrubber's or not.
  void note(const kv::PrefixCache::Check& check);
  /// Blocks whose checks came out.
  std::int64_t checked() const { return checked_; }

 private:
  std::vector<kv::BlockId> next_sealed(std::int64_t most);

  kv::PrefixCache& cache_;
  double share_;
  std::int64_t at_once_;
  Clock::duration saved_{};  ///< to be spent
  Clock::duration cost_{};   ///< of at_once_ blocks
  kv::BlockId next_ = 0;
  std::uint64_t under_way_ = 0;  ///< the moment of the check, or 0
  std::int64_t checking_ = 0;    ///< its blocks
  std::int64_t checked_ = 0;
};

}  // namespace fieldprint::engine
