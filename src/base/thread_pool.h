#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
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
  // state_ = region number << kMembersBits | workers inside. Odd regions are open, even ones closed.
  static constexpr int kMembersBits = 16;
  static constexpr std::uint64_t kMembers = (std::uint64_t{1} << kMembersBits) - 1;
  static constexpr std::uint64_t kNextRegion = std::uint64_t{1} << kMembersBits;

  void work();
  /// Waits for another region than the one in `seen`; returns the state.
  std::uint64_t await_region(std::uint64_t seen) const;
  bool join(std::uint64_t state);
  void run_ranges();

  std::vector<std::thread> workers_;
  std::atomic<std::uint64_t> state_{0};
  std::atomic<std::int64_t> next_{0};
  std::atomic<bool> stop_{false};
  // Written by the caller while the region is closed and empty.
  std::int64_t count_ = 0;
  std::int64_t grain_ = 1;
  const Body* body_ = nullptr;
};

}  // namespace fieldprint
