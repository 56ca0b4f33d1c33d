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
  CHECK(threads >= 1 && threads < kMostThreads, "a pool of {} threads", threads);
  places_ = std::make_unique<Place[]>(static_cast<std::size_t>(threads - 1));
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  // A limit on threads or memory is no reason to give up: fewer threads give the same result, later.
  try {
    for (int i = 0; i + 1 < threads; ++i) {
      workers_.push_back(start([this, &place = places_[static_cast<std::size_t>(i)]] { work(place); }));
    }
  } catch (const std::system_error&) {
    return;
  } catch (const std::bad_alloc&) {
    return;
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  region_.fetch_add(2);
  region_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_ranges() {
  for (;;) {
    const std::int64_t begin = next_.fetch_add(grain_, std::memory_order_relaxed);
    if (begin >= count_) return;
    (*body_)(begin, std::min(begin + grain_, count_));
  }
}

std::uint32_t ThreadPool::await_region(std::uint32_t seen) const {
  for (int spins = 0;; ++spins) {
    const std::uint32_t region = region_.load(std::memory_order_acquire);
    if (region != seen) return region;
    if (spins < kSpins) {
      _mm_pause();
    } else {
      region_.wait(region, std::memory_order_acquire);
    }
  }
}

void ThreadPool::work(Place& place) {
  std::uint32_t seen = 0;
  for (;;) {
    seen = await_region(seen);
    if (stop_.load()) return;
    if (seen % 2 == 0) continue;
    // Sequentially consistent, as in parallel_for: either this thread finds the region closed, or the caller
    // finds it inside.
    place.inside.store(true);
    if (region_.load() == seen) run_ranges();
    place.inside.store(false, std::memory_order_release);
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
  region_.fetch_add(1);
  region_.notify_all();
  run_ranges();
  region_.fetch_add(1);
  for (std::size_t i = 0; i < workers_.size(); ++i) {
    for (int spins = 0; places_[i].inside.load(); ++spins) {
      if (spins < kSpins) {
        _mm_pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
}

}  // namespace fieldprint
