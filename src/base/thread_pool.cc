#include "base/thread_pool.h"

#include <immintrin.h>

#include <algorithm>
#include <new>
#include <system_error>
#include <utility>

#include "base/check.h"

namespace fieldprint {
namespace {

// Some tens of microseconds: longer than the gap between two regions of a step, too short to heat a room.
constexpr int kSpins = 2000;

}  // namespace

ThreadPool::ThreadPool(int threads)
    : ThreadPool(threads, [](std::function<void()> work) { return std::thread(std::move(work)); }) {}

ThreadPool::ThreadPool(int threads, const Start& start) {
  CHECK(threads >= 1 && threads < static_cast<int>(kMembers), "a pool of {} threads", threads);
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  // A limit on threads or memory is no reason to give up: fewer threads give the same result, later.
  try {
    for (int i = 1; i < threads; ++i) workers_.push_back(start([this] { work(); }));
  } catch (const std::system_error&) {
    return;
  } catch (const std::bad_alloc&) {
    return;
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  state_.fetch_add(2 * kNextRegion);
  state_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_ranges() {
  for (;;) {
    const std::int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= count_) return;
    (*body_)(begin, std::min(begin + grain_, count_));
  }
}

std::uint64_t ThreadPool::await_region(std::uint64_t seen) const {
  for (int spins = 0;; ++spins) {
    const std::uint64_t state = state_.load(std::memory_order_acquire);
    if (state >> kMembersBits != seen >> kMembersBits) return state;
    if (spins < kSpins) {
      _mm_pause();
    } else {
      state_.wait(state, std::memory_order_acquire);
    }
  }
}

bool ThreadPool::join(std::uint64_t state) {
  const std::uint64_t region = state >> kMembersBits;
  while (region % 2 == 1 && state >> kMembersBits == region) {
    if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel,
                                     std::memory_order_acquire)) {
      return true;
    }
  }
  return false;
}

void ThreadPool::work() {
  std::uint64_t seen = 0;
  for (;;) {
    seen = await_region(seen);
    if (stop_.load()) return;
    if (!join(seen)) continue;
    run_ranges();
    state_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadPool::parallel_for(std::int64_t count, std::int64_t grain, const Body& body) {
  if (count <= 0) return;
  if (workers_.empty() || count <= grain) {
    body(0, count);
    return;
  }
  count_ = count;
  grain_ = std::max<std::int64_t>(grain, 1);
  body_ = &body;
  next_.store(0, std::memory_order_relaxed);
  state_.fetch_add(kNextRegion, std::memory_order_release);
  state_.notify_all();
  run_ranges();
  state_.fetch_add(kNextRegion, std::memory_order_acq_rel);
  for (int spins = 0; (state_.load(std::memory_order_acquire) & kMembers) != 0; ++spins) {
    if (spins < kSpins) {
      _mm_pause();
    } else {
      std::this_thread::yield();
    }
  }
}

}  // namespace fieldprint
