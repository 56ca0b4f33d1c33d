#pragma once

#include <chrono>
#include <optional>

#include "kv/prefix_cache.h"

namespace fieldprint::engine {

/// Reads resident blocks again, round and round, in a small share of the engine's time.
class Scrubber {
 public:
  using Clock = std::chrono::steady_clock;

  /// `share` of the time that steps take; 0: never.
  Scrubber(kv::PrefixCache& cache, double share) : cache_(cache), share_(share) {}

  /// After a step that took `step`: hashes as many sealed blocks again as the time saved up allows. Stops at
  /// the first whose bytes changed and returns it.
  std::optional<kv::BlockId> scrub(Clock::duration step);
  std::int64_t checked() const { return checked_; }

 private:
  std::optional<kv::BlockId> next_sealed();

  kv::PrefixCache& cache_;
  double share_;
  Clock::duration saved_{};  ///< to be spent
  Clock::duration cost_{};   ///< of the last block
  kv::BlockId next_ = 0;
  std::int64_t checked_ = 0;
};

}  // namespace fieldprint::engine
