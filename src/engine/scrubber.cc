#include "engine/scrubber.h"

#include <algorithm>

namespace fieldprint::engine {
namespace {

// A pool may be large and mostly empty; a step looks at no more than this many of its blocks.
constexpr std::int64_t kLookedAt = 4096;

}  // namespace

void Scrubber::scrub(Clock::duration step) {
  if (share_ <= 0) return;
  saved_ += std::chrono::duration_cast<Clock::duration>(share_ * step);
  if (under_way_ != 0 || saved_ < cost_) return;
  const std::int64_t times = cost_.count() > 0 ? saved_ / cost_ : 1;
  const std::vector<kv::BlockId> blocks =
      next_sealed(std::min(times, std::max<std::int64_t>(kLookedAt / at_once_, 1)) * at_once_);
  if (blocks.empty()) {
    saved_ = std::min(saved_, cost_);  // time in which there was nothing to do is not saved up
    return;
  }
  under_way_ = cache_.begin_check(blocks);
  checking_ = std::ssize(blocks);
}

void Scrubber::note(const kv::PrefixCache::Check& check) {
  if (check.moment != under_way_) return;
  cost_ = std::chrono::duration_cast<Clock::duration>(check.took) / ((checking_ + at_once_ - 1) / at_once_);
  saved_ -= check.took;
  checked_ += checking_;
  under_way_ = 0;
}

/// At most so many, none twice.
std::vector<kv::BlockId> Scrubber::next_sealed(std::int64_t most) {
  std::vector<kv::BlockId> found;
  const std::int64_t blocks = cache_.pool().blocks();
  for (std::int64_t i = 0; i < std::min(blocks, kLookedAt) && std::ssize(found) < most; ++i) {
    const kv::BlockId block = next_;
    next_ = next_ + 1 < blocks ? next_ + 1 : 0;
    if (cache_.sealed(block)) found.push_back(block);
  }
  return found;
}

}  // namespace fieldprint::engine
