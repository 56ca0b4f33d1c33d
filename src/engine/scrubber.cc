#include "engine/scrubber.h"

#include <algorithm>

namespace fieldprint::engine {
namespace {

// A pool may be large and mostly empty; a step looks at no more than this many of its blocks.
constexpr std::int64_t kLookedAt = 4096;

}  // namespace

std::optional<kv::BlockId> Scrubber::scrub(Clock::duration step) {
  if (share_ <= 0) return std::nullopt;
  saved_ += std::chrono::duration_cast<Clock::duration>(share_ * step);
  while (saved_ >= cost_) {
    const std::optional<kv::BlockId> block = next_sealed();
    if (!block) {
      saved_ = std::min(saved_, cost_);  // time in which there was nothing to do is not saved up
      break;
    }
    const Clock::time_point start = Clock::now();
    const bool intact = cache_.intact(*block);
    cost_ = Clock::now() - start;
    saved_ -= cost_;
    ++checked_;
    if (!intact) return block;
  }
  return std::nullopt;
}

std::optional<kv::BlockId> Scrubber::next_sealed() {
  const std::int64_t blocks = cache_.pool().blocks();
  for (std::int64_t i = 0; i < std::min(blocks, kLookedAt); ++i) {
    const kv::BlockId block = next_;
    next_ = next_ + 1 < blocks ? next_ + 1 : 0;
    if (cache_.sealed(block)) return block;
  }
  return std::nullopt;
}

}  // namespace fieldprint::engine
