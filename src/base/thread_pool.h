#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace fieldprint {

/// A fixed team of threads for data-parallel regions of a few microseconds: the caller is one of them, the
/// others spin for a short while before they sleep. Which thread runs which item never changes a result.
class ThreadPool {
 public:
  /// `threads` ≥ 1, the caller included.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Runs body(begin, end) over [0, count) in ranges of at most `grain` items taken from a shared counter,
  /// and returns when all have run. Not reentrant; one caller at a time.
  void parallel_for(std::int64_t count, std::int64_t grain,
                    const std::function<void(std::int64_t, std::int64_t)>& body);

 private:
  void work();
  void run_ranges();

  std::vector<std::thread> workers_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<std::int64_t> next_{0};
  std::atomic<int> running_{0};
  std::atomic<bool> stop_{false};
  std::int64_t count_ = 0;
  std::int64_t grain_ = 1;
  const std::function<void(std::int64_t, std::int64_t)>* body_ = nullptr;
};

}  // namespace fieldprint
