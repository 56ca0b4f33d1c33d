#include "engine/scrubber.h"

#include <gtest/gtest.h>

#include <map>

namespace fieldprint::engine {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr kv::KvGeometry kGeometry{.layers = 1, .kv_heads = 2, .head_dim = 4};

/// A cache in which the first so many blocks are sealed.
struct Fixture {
  explicit Fixture(int sealed)
      : pool(std::move(kv::BlockPool::create(kGeometry, 8)).value()),
        cache(pool, kv::host_page_hasher(pool)) {
    kv::BlockKey parent{};
    for (int i = 0; i < sealed; ++i) {
      const kv::BlockKey key{sha256(std::to_string(i))};
      const kv::SealRequest request{parent, key, cache.acquire().value(),
                                    i == 0 ? core::Segment::kSink : core::Segment::kContext};
      blocks.push_back(cache.seal(std::span(&request, 1)).front());
      parent = key;
    }
  }
  ~Fixture() {
    for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) cache.release(*block);
  }
  kv::BlockPool pool;
  kv::PrefixCache cache;
  std::vector<kv::BlockId> blocks;
};

/// What a step hears of checks.
std::vector<kv::BlockId> heed(Fixture& f, Scrubber& scrubber) {
  std::vector<kv::BlockId> damaged;
  for (const kv::PrefixCache::Check& check : f.cache.finish_checks(false)) {
    scrubber.note(check);
    damaged.insert(damaged.end(), check.damaged.begin(), check.damaged.end());
  }
  return damaged;
}

TEST(Scrubber, GoesRoundAllSealedBlocks) {
  for (const std::int64_t at_once : {1, 2, 5}) {
    Fixture f(3);
    Scrubber scrubber(f.cache, 1, at_once);
    const std::uint64_t before = f.cache.moment();
    for (int i = 0; i < 100 && scrubber.checked() < 3; ++i) {
      scrubber.scrub(milliseconds(1));
      EXPECT_TRUE(heed(f, scrubber).empty());
    }
    for (const kv::BlockId block : f.blocks) EXPECT_GT(f.cache.good_at(block), before);
  }
}

TEST(Scrubber, FindsADamagedBlock) {
  Fixture f(3);
  Scrubber scrubber(f.cache, 1, 3);
  f.pool.data(f.blocks[1])[3] ^= 1;
  scrubber.scrub(seconds(1));
  EXPECT_EQ(heed(f, scrubber), std::vector{f.blocks[1]});
  f.pool.data(f.blocks[1])[3] ^= 1;
}

TEST(Scrubber, BeginsNothingWhileItsLastCheckIsUnderWay) {
  Fixture f(3);
  Scrubber scrubber(f.cache, 1, 1);
  scrubber.scrub(seconds(1));
  const std::uint64_t moment = f.cache.moment();
  scrubber.scrub(seconds(1));
  EXPECT_EQ(f.cache.moment(), moment);
  f.cache.begin_check(f.blocks);  // somebody else's
  heed(f, scrubber);
  EXPECT_EQ(scrubber.checked(), 1);
  scrubber.scrub(seconds(1));
  EXPECT_GT(f.cache.moment(), moment + 1);
}

TEST(Scrubber, SpendsNoMoreThanItsShare) {
  Fixture f(3);
  Scrubber idle(f.cache, 0, 1);
  const std::uint64_t moment = f.cache.moment();
  idle.scrub(seconds(1000));
  EXPECT_EQ(f.cache.moment(), moment);
  Scrubber scrubber(f.cache, 1e-9, 1);
  for (int i = 0; i < 1000; ++i) {
    scrubber.scrub(milliseconds(1));
    EXPECT_TRUE(heed(f, scrubber).empty());
  }
  EXPECT_LE(scrubber.checked(), 2) << "a millisecond's worth is a picosecond a step";
}

TEST(Scrubber, TimeWithNothingToDoIsNotSavedUp) {
  Fixture f(0);
  Scrubber scrubber(f.cache, 1, 1);
  const std::uint64_t moment = f.cache.moment();
  scrubber.scrub(seconds(1000));
  EXPECT_EQ(f.cache.moment(), moment);
}

}  // namespace
}  // namespace fieldprint::engine
