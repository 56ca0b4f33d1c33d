#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace fieldprint {

/// A fixed team of threads for data-parallel regions of a few microseconds: the caller is one of them, the
/// others spin for a short while before they sleep. A worker that the operating system has put aside is not
/// waited for: it joins a region only while there is work in it. Which thread runs which item never changes a
/// result.
class ThreadPool {
 public:
  using Body = std::function<void(std::int64_t begin, std::int64_t end)>;

  /// Starts a thread that runs `work`, or throws as the constructor of std::thread does.
  using Start = std::function<std::thread(std::function<void()> work)>;

  /// `threads` ≥ 1, the caller included. Where the operating system gives no more threads, the pool has
  /// fewer.
  explicit ThreadPool(int threads);
  ThreadPool(int threads, const Start& start);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// The threads there are, the caller included.
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Runs body(begin, end) over [0, count) in ranges of at most `grain` items taken from a shared counter,
  /// and returns when all have run. Not reentrant; one caller at a time.
  void parallel_for(std::int64_t count, std::int64_t grain, const Body& body);

 private:
  static constexpr std::size_t kLine = 64;  ///< bytes that processors hand to each other at a time
  static constexpr int kMostThreads = 1 << 16;

  /// Where a worker says that it is in a region. A line of its own: threads that entered and left on a shared
  /// counter would wait for each other.
  struct alignas(kLine) Place {
    std::atomic<bool> inside{false};
  };

  void work(Place& place);
  /// Waits for another region than `seen`; returns its number.
  std::uint32_t await_region(std::uint32_t seen) const;
  void run_ranges();

  std::vector<std::thread> workers_;
  std::unique_ptr<Place[]> places_;  ///< of each worker
  std::atomic<bool> stop_{false};
  // Written by the caller while the region is closed and empty.
  std::int64_t count_ = 0;
  std::int64_t grain_ = 1;
  const Body* body_ = nullptr;
  /// Odd while a region is open. Those who wait read it, so nothing else may change its line.
  alignas(kLine) std::atomic<std::uint32_t> region_{0};
  alignas(kLine) std::atomic<std::int64_t> next_{0};
};

}  // namespace fieldprint
