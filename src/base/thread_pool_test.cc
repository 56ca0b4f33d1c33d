#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <new>
#include <set>
#include <system_error>

namespace fieldprint {
namespace {

/// How often a region ran each item, without any synchronisation of its own: the pool's must suffice.
std::vector<int> counts(ThreadPool& pool, std::int64_t count, std::int64_t grain) {
  std::vector<int> counts(static_cast<std::size_t>(std::max<std::int64_t>(count, 0)));
  pool.parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) ++counts[static_cast<std::size_t>(i)];
  });
  return counts;
}

TEST(ThreadPool, EveryItemRunsExactlyOnce) {
  for (int threads = 1; threads <= 8; ++threads) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const std::int64_t count : {0, 1, 2, 7, 64, 1000}) {
      for (const std::int64_t grain : {1, 3, 64, 5000}) {
        EXPECT_EQ(counts(pool, count, grain), std::vector<int>(static_cast<std::size_t>(count), 1))
            << threads << " threads, " << count << " items by " << grain;
      }
    }
  }
}

TEST(ThreadPool, RangesLieWithinTheRegionAndHoldAtMostGrainItems) {
  ThreadPool pool(3);
  std::mutex mutex;
  std::set<std::pair<std::int64_t, std::int64_t>> ranges;
  pool.parallel_for(100, 8, [&](std::int64_t begin, std::int64_t end) {
    const std::lock_guard<std::mutex> lock(mutex);
    ranges.emplace(begin, end);
  });
  std::int64_t next = 0;
  for (const auto& [begin, end] : ranges) {
    EXPECT_EQ(begin, next);
    EXPECT_LE(end - begin, 8);
    next = end;
  }
  EXPECT_EQ(next, 100);
}

TEST(ThreadPool, NothingRunsForNoItems) {
  ThreadPool pool(2);
  pool.parallel_for(0, 4, [](std::int64_t, std::int64_t) { ADD_FAILURE() << "ran"; });
  pool.parallel_for(-1, 4, [](std::int64_t, std::int64_t) { ADD_FAILURE() << "ran"; });
}

// Each region reads what the one before it wrote, as the operations of a step do.
TEST(ThreadPool, ARegionSeesAllThatTheRegionBeforeItWrote) {
  for (int threads = 1; threads <= 8; ++threads) {
    ThreadPool pool(threads);
    std::vector<std::int64_t> from(40, 0);
    std::vector<std::int64_t> to(40, 0);
    const int regions = 1500;
    for (int region = 0; region < regions; ++region) {
      pool.parallel_for(40, 1 + region % 5, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          to[static_cast<std::size_t>(i)] = from[static_cast<std::size_t>((i + 7) % 40)] + 1;
        }
      });
      from.swap(to);
    }
    EXPECT_EQ(from, std::vector<std::int64_t>(40, regions)) << threads << " threads";
  }
}

// A worker that wakes late must not find the next region's, or an older region's, body.
TEST(ThreadPool, EveryRegionRunsItsOwnBody) {
  ThreadPool pool(4);
  for (int region = 0; region < 4000; ++region) {
    std::vector<int> who(6, -1);
    pool.parallel_for(6, 1, [&who, region](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) who[static_cast<std::size_t>(i)] = region;
    });
    ASSERT_EQ(who, std::vector<int>(6, region));
  }
}

TEST(ThreadPool, WorkersThatFellAsleepComeBack) {
  ThreadPool pool(3);
  for (int pause = 0; pause < 5; ++pause) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_EQ(counts(pool, 500, 2), std::vector<int>(500, 1));
  }
}

TEST(ThreadPool, AllThreadsTakePartInALongRegion) {
  ThreadPool pool(3);
  std::mutex mutex;
  std::set<std::thread::id> seen;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  pool.parallel_for(3, 1, [&](std::int64_t, std::int64_t) {
    for (bool all = false; !all && std::chrono::steady_clock::now() < deadline;) {
      const std::lock_guard<std::mutex> lock(mutex);
      seen.insert(std::this_thread::get_id());
      all = seen.size() == 3;
    }
  });
  EXPECT_EQ(seen.size(), 3U);
}

TEST(ThreadPool, CanBeMadeAndDroppedWithoutARegion) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(1 + i % 8);
}

TEST(ThreadPool, HasFewerThreadsWhereTheSystemGivesNoMore) {
  const auto out_of_threads = [] {
    throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
  };
  const auto out_of_memory = [] { throw std::bad_alloc(); };
  for (const std::function<void()>& fail : {std::function<void()>(out_of_threads), {out_of_memory}}) {
    for (int most = 0; most < 4; ++most) {
      int started = 0;
      ThreadPool pool(8, [&](std::function<void()> work) {
        if (started == most) fail();
        ++started;
        return std::thread(std::move(work));
      });
      EXPECT_EQ(pool.size(), most + 1);
      for (int region = 0; region < 20; ++region) {
        EXPECT_EQ(counts(pool, 500, 2), std::vector<int>(500, 1)) << most;
      }
    }
  }
}

TEST(ThreadPool, CanBeDroppedRightAfterARegion) {
  for (int i = 0; i < 100; ++i) {
    ThreadPool pool(4);
    EXPECT_EQ(counts(pool, 16, 1), std::vector<int>(16, 1));
  }
}

}  // namespace
}  // namespace fieldprint
