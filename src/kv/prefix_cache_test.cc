#include "kv/prefix_cache.h"

#include <gtest/gtest.h>

#include <string>

#include "kv/late_digests_testing.h"

namespace fieldprint::kv {
namespace {

using core::Segment;

constexpr KvGeometry kGeometry{.layers = 1, .kv_heads = 2, .head_dim = 4};

BlockKey key(const std::string& name) { return {sha256(name)}; }

struct Fixture {
  explicit Fixture(std::int64_t blocks, bool enabled = true)
      : pool(std::move(BlockPool::create(kGeometry, blocks)).value()),
        cache(pool, host_page_hasher(pool), enabled) {}

  /// A sealed block, still held; its content follows from its key.
  BlockId sealed(const std::string& name, const std::string& parent, Segment segment = Segment::kContext) {
    const BlockId block = cache.acquire().value();
    pool.data(block)[5] = key(name).digest[0];
    const SealRequest request{key(parent), key(name), block, segment};
    return cache.seal(std::span(&request, 1)).front();
  }

  /// The same, with other content.
  BlockId altered(const std::string& name, const std::string& parent, Segment segment = Segment::kContext) {
    const BlockId block = cache.acquire().value();
    pool.data(block)[6] = 1;
    const SealRequest request{key(parent), key(name), block, segment};
    return cache.seal(std::span(&request, 1)).front();
  }

  BlockPool pool;
  PrefixCache cache;
};

TEST(PrefixCache, BlocksPassThroughTheStatesOfTheContract) {
  Fixture f(3);
  const BlockId block = f.cache.acquire().value();
  EXPECT_EQ(f.cache.state(block), BlockState::kExclusive);
  f.cache.retain(block);
  EXPECT_EQ(f.cache.state(block), BlockState::kShared);
  f.cache.release(block);
  EXPECT_EQ(f.cache.state(block), BlockState::kExclusive);
  const SealRequest request{key("root"), key("sink"), block, Segment::kSink};
  EXPECT_EQ(f.cache.seal(std::span(&request, 1)).front(), block);
  EXPECT_EQ(f.cache.state(block), BlockState::kShared);
  f.cache.release(block);
  EXPECT_EQ(f.cache.state(block), BlockState::kCached);
  {
    const AnchorLease lease = f.cache.lease({key("sink")});
    EXPECT_EQ(f.cache.state(block), BlockState::kPinned);
    EXPECT_EQ(f.cache.available_blocks(), 2);
  }
  EXPECT_EQ(f.cache.state(block), BlockState::kCached);
  EXPECT_EQ(f.cache.match(std::vector{key("sink")}), std::vector{block});
  EXPECT_EQ(f.cache.state(block), BlockState::kShared);
  f.cache.release(block);
  f.cache.clear();
  EXPECT_EQ(f.cache.state(block), BlockState::kFree);
}

TEST(PrefixCache, MatchesTheLongestCachedPrefixAndStopsAtTheFirstGap) {
  Fixture f(4);
  const BlockId a = f.sealed("a", "root", Segment::kSink);
  const BlockId b = f.sealed("b", "a");
  const std::vector<BlockKey> chain = {key("a"), key("b"), key("missing"), key("b")};
  f.cache.release(b);
  const PrefixCache::Probe probe = f.cache.probe(chain);
  EXPECT_EQ(probe.blocks, 2);
  EXPECT_EQ(probe.cached, 1);
  EXPECT_EQ(f.cache.match(chain), (std::vector{a, b}));
  EXPECT_EQ(f.cache.holders(a), 2);
  EXPECT_EQ(f.cache.holders(b), 1);
  for (const BlockId held : {b, a, a}) {
    f.cache.release(held);
  }
}

TEST(PrefixCache, EvictsTheLeastRecentlyUsedBlockFirst) {
  Fixture f(3);
  std::vector<BlockId> blocks;
  for (const char* name : {"a", "b", "c"}) {
    blocks.push_back(f.sealed(name, "root", Segment::kSink));
  }
  for (const BlockId block : blocks) {
    f.cache.release(block);
  }
  f.cache.release(f.cache.match(std::vector{key("a")}).front());
  const BlockId reused = f.cache.acquire().value();
  EXPECT_EQ(reused, blocks[1]);
  EXPECT_EQ(f.cache.probe(std::vector{key("b")}).blocks, 0);
  EXPECT_EQ(f.cache.probe(std::vector{key("a")}).blocks, 1);
  EXPECT_EQ(f.cache.stats().evictions, 1U);
  f.cache.release(reused);
}

TEST(PrefixCache, NeverEvictsPinnedOrHeldBlocks) {
  Fixture f(2);
  const AnchorLease lease = f.cache.lease({key("sink")});
  const BlockId pinned = f.sealed("sink", "root", Segment::kSink);
  f.cache.release(pinned);
  const BlockId held = f.cache.acquire().value();
  EXPECT_EQ(f.cache.available_blocks(), 0);
  EXPECT_FALSE(f.cache.acquire().has_value());
  f.cache.clear();
  EXPECT_EQ(f.cache.state(pinned), BlockState::kPinned);
  EXPECT_EQ(f.cache.stats().pinned_blocks, 1);
  f.cache.release(held);
}

TEST(PrefixCache, LeasesOnTheSameAnchorsCount) {
  Fixture f(1);
  AnchorLease first = f.cache.lease({key("sink")});
  AnchorLease second = f.cache.lease({key("sink")});
  const BlockId block = f.sealed("sink", "root", Segment::kSink);
  f.cache.release(block);
  AnchorLease moved = std::move(first);
  second = AnchorLease();
  EXPECT_EQ(f.cache.state(block), BlockState::kPinned);
  moved.end();
  EXPECT_EQ(f.cache.state(block), BlockState::kCached);
  EXPECT_EQ(f.cache.stats().pinned_blocks, 0);
}

TEST(PrefixCache, AnchorsNoLongerInForceAreEvictedFromTheirEnd) {
  Fixture f(2);
  AnchorLease lease = f.cache.lease({key("sink"), key("anchors")});
  const BlockId sink = f.sealed("sink", "root", Segment::kSink);
  const BlockId anchors = f.sealed("anchors", "sink", Segment::kAnchors);
  f.cache.release(anchors);
  f.cache.release(sink);
  lease.end();
  EXPECT_EQ(f.cache.acquire(), anchors);
  EXPECT_EQ(f.cache.probe(std::vector{key("sink")}).blocks, 1);
  f.cache.release(anchors);
}

TEST(PrefixCache, BlockComputedTwiceIsFoldedIntoTheIndexedOne) {
  Fixture f(2);
  const BlockId first = f.sealed("sink", "root", Segment::kSink);
  const BlockId second = f.sealed("sink", "root", Segment::kSink);
  EXPECT_EQ(first, second);
  EXPECT_EQ(f.pool.free_blocks(), 1);
  EXPECT_EQ(f.cache.stats().duplicates, 1U);
  f.cache.release(first);
  f.cache.release(first);
}

TEST(PrefixCache, SwitchedOffItSharesAnchorsWhileHeldAndNoContext) {
  Fixture f(4, false);
  const BlockId sink = f.sealed("sink", "root", Segment::kSink);
  const BlockId context = f.sealed("context", "sink");
  EXPECT_EQ(f.cache.match(std::vector{key("sink"), key("context")}), std::vector{sink});
  EXPECT_EQ(f.cache.state(context), BlockState::kShared);
  f.cache.release(context);
  EXPECT_EQ(f.cache.state(context), BlockState::kFree);
  f.cache.release(sink);
  {
    const AnchorLease lease = f.cache.lease({key("sink")});
    f.cache.release(sink);
    EXPECT_EQ(f.cache.state(sink), BlockState::kPinned);
  }
  EXPECT_EQ(f.cache.state(sink), BlockState::kFree);
}

TEST(PrefixCache, FindsADamagedBlockAndDropsWhatWasComputedFromIt) {
  Fixture f(5);
  const BlockId sink = f.sealed("sink", "root", Segment::kSink);
  const BlockId a = f.sealed("a", "sink");
  const BlockId b = f.sealed("b", "a");
  const BlockId c = f.sealed("c", "b");
  const BlockId other = f.sealed("other", "sink");
  f.cache.release(c);
  EXPECT_TRUE(f.cache.find_damaged(std::vector{sink, a}).empty());
  f.pool.data(a)[0] ^= 1;
  EXPECT_EQ(f.cache.find_damaged(std::vector{sink, a, b}), std::vector{a});
  EXPECT_GT(f.cache.good_at(b), f.cache.good_at(a));
  EXPECT_EQ(f.cache.discard(a), (std::vector{a, b}));
  EXPECT_EQ(f.cache.state(c), BlockState::kFree);
  EXPECT_EQ(f.cache.probe(std::vector{key("sink"), key("a")}).blocks, 1);
  EXPECT_EQ(f.cache.probe(std::vector{key("other")}).blocks, 1);
  EXPECT_EQ(f.cache.state(a), BlockState::kShared);
  const BlockId late = f.sealed("late", "b");
  EXPECT_EQ(f.cache.probe(std::vector{key("late")}).blocks, 0) << "indexed without its parent";
  for (const BlockId held : {late, other, b, a, sink}) {
    f.cache.release(held);
  }
  EXPECT_EQ(f.cache.state(a), BlockState::kFree);
}

TEST(PrefixCache, DiscardedAnchorIsPinnedAgainOnceRecomputed) {
  Fixture f(2);
  const AnchorLease lease = f.cache.lease({key("sink")});
  const BlockId damaged = f.sealed("sink", "root", Segment::kSink);
  f.cache.release(damaged);
  EXPECT_TRUE(f.cache.discard(damaged).empty());
  EXPECT_EQ(f.cache.stats().pinned_blocks, 0);
  const BlockId fresh = f.sealed("sink", "root", Segment::kSink);
  f.cache.release(fresh);
  EXPECT_EQ(f.cache.state(fresh), BlockState::kPinned);
  EXPECT_EQ(f.cache.stats().pinned_blocks, 1);
}

TEST(PrefixCache, KeepsTheDigestOfSealedBlocksAndComputesOthers) {
  Fixture f(2);
  const BlockId sealed = f.sealed("sink", "root", Segment::kSink);
  const BlockId open = f.cache.acquire().value();
  f.pool.data(open)[9] = 1;
  const std::vector<BlockId> blocks = {open, sealed};
  const std::vector<Digest> expected = block_digests(kGeometry, host_page_hasher(f.pool), blocks);
  EXPECT_EQ(f.cache.digests(blocks), expected);
  EXPECT_EQ(f.cache.digest(sealed), expected[1]);
  f.cache.release(open);
  f.cache.release(sealed);
}

struct LateFixture {
  explicit LateFixture(std::int64_t blocks, bool enabled = true)
      : pool(std::move(BlockPool::create(kGeometry, blocks)).value()),
        cache(
            pool,
            [this](std::span<const BlockId> hashed) {
              return std::make_unique<testing::LateDigests>(pool, hashed, waits);
            },
            enabled) {}

  BlockId sealed(const std::string& name, std::uint8_t content, Segment segment = Segment::kSink) {
    const BlockId block = cache.acquire().value();
    pool.data(block)[5] = content;
    const SealRequest request{key("root"), key(name), block, segment};
    return cache.seal(std::span(&request, 1)).front();
  }

  BlockPool pool;
  int waits = 0;
  PrefixCache cache;
};

TEST(PrefixCache, AChecksResultIsPickedUpLaterAndNobodyWaitsForIt) {
  LateFixture f(3);
  const BlockId good = f.sealed("a", 1);
  const BlockId bad = f.sealed("b", 2);
  f.cache.settle();
  f.waits = 0;
  const std::uint64_t moment = f.cache.begin_check(std::vector{good, bad});
  EXPECT_EQ(f.cache.good_or_checked_at(good), moment);
  EXPECT_LT(f.cache.good_at(good), moment);
  f.pool.data(bad)[3] ^= 1;
  EXPECT_TRUE(f.cache.finish_checks(false).empty());
  EXPECT_EQ(f.waits, 0);
  const std::vector<PrefixCache::Check> checks = f.cache.finish_checks(true);
  ASSERT_EQ(checks.size(), 1U);
  EXPECT_EQ(checks[0].moment, moment);
  EXPECT_EQ(checks[0].damaged, std::vector{bad});
  EXPECT_EQ(f.cache.good_at(good), moment);
  EXPECT_LT(f.cache.good_at(bad), moment);
  EXPECT_TRUE(f.cache.finish_checks(true).empty());
  f.cache.release(good);
  f.cache.release(bad);
}

TEST(PrefixCache, ABlockThatWasGivenUpOrSealedAgainDropsOutOfACheck) {
  LateFixture f(2, false);
  const BlockId block = f.sealed("a", 1);
  f.cache.settle();
  f.cache.begin_check(std::vector{block});
  f.cache.release(block);
  ASSERT_EQ(f.cache.state(block), BlockState::kFree);
  EXPECT_TRUE(f.cache.finish_checks(true).at(0).damaged.empty()) << "it is free";
  const BlockId again = f.sealed("a", 1);
  f.cache.settle();
  f.cache.begin_check(std::vector{again});
  f.cache.release(again);
  const BlockId other = f.sealed("b", 2);
  ASSERT_EQ(other, again) << "the test is about a block of two lives";
  f.cache.settle();
  const std::uint64_t sealed = f.cache.good_at(other);
  EXPECT_TRUE(f.cache.finish_checks(true).at(0).damaged.empty());
  EXPECT_EQ(f.cache.good_at(other), sealed);
  f.cache.release(other);
}

TEST(PrefixCache, SealingDoesNotWaitForDigestsAndWhoNeedsOneDoes) {
  LateFixture f(3);
  const BlockId first = f.sealed("a", 1);
  const BlockId second = f.sealed("b", 2);
  EXPECT_EQ(f.waits, 0);
  EXPECT_EQ(f.cache.match(std::vector{key("a")}), std::vector{first});
  EXPECT_EQ(f.waits, 0);
  const std::vector<BlockId> blocks = {first, second};
  EXPECT_EQ(f.cache.digests(blocks), block_digests(kGeometry, host_page_hasher(f.pool), blocks));
  EXPECT_EQ(f.waits, 2);
  f.cache.settle();
  EXPECT_EQ(f.waits, 2);
  for (const BlockId held : {first, first, second}) f.cache.release(held);
}

TEST(PrefixCache, DuplicatesAreComparedByDigestsThatWereOnTheirWay) {
  LateFixture f(2);
  const BlockId first = f.sealed("sink", 7);
  EXPECT_EQ(f.sealed("sink", 7), first);
  EXPECT_EQ(f.waits, 2);
  EXPECT_EQ(f.cache.stats().duplicates, 1U);
  f.cache.release(first);
  f.cache.release(first);
}

/// Whoever gets the block next writes to it.
TEST(PrefixCache, ABlockIsHashedBeforeItsBytesAreGivenUp) {
  LateFixture off(1, false);
  off.cache.release(off.sealed("context", 1, Segment::kContext));
  EXPECT_EQ(off.waits, 1);
  LateFixture on(1);
  on.cache.release(on.sealed("sink", 1));
  EXPECT_EQ(on.waits, 0);
  on.cache.release(on.cache.acquire().value());  // evicts it
  EXPECT_EQ(on.waits, 1);
  LateFixture writer(1, false);
  const BlockId block = writer.sealed("context", 1, Segment::kContext);
  EXPECT_EQ(writer.cache.make_writable(block), block);
  EXPECT_EQ(writer.waits, 1);
  writer.cache.release(block);
}

/// A chain of which a block was damaged before the one after it was computed once more.
TEST(PrefixCache, ABlockThatDiffersBecauseOfADamagedPageMakesThatPageSuspect) {
  Fixture f(6);
  const BlockId sink = f.sealed("sink", "root", Segment::kSink);
  const BlockId a = f.sealed("a", "sink");
  const BlockId b = f.sealed("b", "a");
  f.pool.data(a)[0] ^= 1;
  const BlockId altered = f.altered("b", "a");
  ASSERT_NE(altered, b);
  EXPECT_TRUE(f.cache.sealed(altered));
  EXPECT_EQ(f.cache.match(std::vector{key("sink"), key("a"), key("b")}), (std::vector{sink, a, b}));
  // Whoever seals it too comes to the same.
  const BlockId third = f.altered("b", "a");
  EXPECT_EQ(f.cache.take_suspects(), (std::vector{a, altered, third}));
  EXPECT_TRUE(f.cache.take_suspects().empty());
  for (const BlockId held : f.cache.discard(a)) {
    while (f.cache.holders(held) > 0) f.cache.release(held);
  }
  EXPECT_EQ(f.cache.stats().cached_blocks, 0);
  EXPECT_EQ(f.pool.free_blocks(), 5) << "all but the sink";
  // As often as it happens.
  const BlockId again = f.sealed("a", "sink");
  const BlockId child = f.sealed("b", "a");
  f.pool.data(again)[0] ^= 1;
  const BlockId other = f.altered("b", "a");
  EXPECT_EQ(f.cache.take_suspects(), (std::vector{again, other}));
  for (const BlockId held : {other, child, again, sink, sink}) f.cache.release(held);
}

TEST(PrefixCache, BlocksThatDifferWhereEveryPageHoldsAreBothSuspect) {
  Fixture f(4);
  const BlockId sink = f.sealed("sink", "root", Segment::kSink);
  const BlockId a = f.sealed("a", "sink");
  const BlockId other = f.altered("a", "sink");
  const BlockId third = f.altered("a", "sink");
  EXPECT_EQ(f.cache.take_suspects(), (std::vector{a, other, third}));
  for (const BlockId held : {third, other, a, sink}) f.cache.release(held);
}

TEST(PrefixCacheDeathTest, EqualKeysWithDifferentBytesStopTheProcessWhenThatComesAgain) {
  Fixture f(3);
  const BlockId first = f.sealed("sink", "root", Segment::kSink);
  const BlockId second = f.altered("sink", "root", Segment::kSink);
  EXPECT_EQ(f.cache.take_suspects(), (std::vector{first, second}));
  EXPECT_DEATH(f.altered("sink", "root", Segment::kSink), "differ under key .* for the second time");
  f.cache.release(first);
  f.cache.release(second);
}

TEST(PrefixCacheDeathTest, LeakedBlocksStopTheProcess) {
  EXPECT_DEATH(
      {
        Fixture f(2);
        f.cache.acquire();
      },
      "still held");
}

}  // namespace
}  // namespace fieldprint::kv
