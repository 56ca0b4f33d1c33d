#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "kv/block_table.h"
#include "kv/fake_kernel.h"
#include "kv/late_digests_testing.h"
#include "kv/swap_testing.h"

namespace fieldprint::kv {
namespace {

constexpr KvGeometry kGeometry{.layers = 1, .kv_heads = 2, .head_dim = 4};
const BlockKey kRoot = root_key(sha256(std::string_view("model")), "canon-1");

enum class Where { kMemory, kFile };

std::unique_ptr<SwapArea> area(std::int64_t slots, Where where) {
  const auto path = std::filesystem::path(::testing::TempDir()) / ("swap-" + std::to_string(::getpid()));
  const SwapOptions options{slots * kGeometry.block_bytes(), where == Where::kFile ? path.string() : ""};
  return SwapArea::create(kGeometry, options).value();
}

std::vector<std::int32_t> tokens(std::int64_t count, std::int32_t from = 0) {
  std::vector<std::int32_t> out;
  for (std::int64_t i = 0; i < count; ++i) out.push_back(from + static_cast<std::int32_t>(i));
  return out;
}

/// A pool of few blocks with a swap area behind it.
struct Fixture {
  explicit Fixture(std::int64_t blocks, std::int64_t slots = 50, Where where = Where::kMemory)
      : pool(std::move(BlockPool::create(kGeometry, blocks)).value()),
        cache(pool, host_page_hasher(pool), true, area(slots, where)) {}

  BlockTable table(std::int64_t anchors = 0) { return {cache, kRoot, core::BlockLayout{anchors}}; }
  /// Computes what a table does not hold of these tokens.
  void compute(BlockTable& table, const std::vector<std::int32_t>& all) {
    const std::int64_t from = table.size();
    ASSERT_TRUE(table.append(std::span(all).subspan(static_cast<std::size_t>(from))));
    testing::run_kernels(pool, table, from);
    table.seal_filled();
  }
  /// Computes tokens from their start and leaves them in the cache; gives the keys of their blocks.
  std::vector<BlockKey> leave(const std::vector<std::int32_t>& all, std::int64_t anchors = 0) {
    BlockTable filled = table(anchors);
    compute(filled, all);
    return {filled.keys().begin(), filled.keys().end()};
  }
  /// Takes every block there is, so that all cached ones must leave.
  void push_out() {
    std::vector<BlockId> all;
    while (const auto block = cache.acquire()) all.push_back(*block);
    for (const BlockId block : all) cache.release(block);
  }
  SwapStats swap() const { return cache.stats().swap; }
  SwapProbe probe() { return SwapProbe(cache); }

  BlockPool pool;
  PrefixCache cache;
};

/// Five blocks: the sink and four full ones of context.
const std::vector<std::int32_t> kFive = tokens(1 + 4 * 64);

void expect_right(const Fixture& f, const BlockTable& table) {
  for (std::int64_t i = 0; i < std::ssize(table.blocks()); ++i) {
    EXPECT_TRUE(testing::holds_expected_bytes(f.pool, table, i)) << "block " << i;
  }
}

TEST(PrefixCacheSwap, EvictedBlocksComeBackWithTheirBytesDigestsAndPlaces) {
  for (const Where where : {Where::kMemory, Where::kFile}) {
    Fixture f(5, 50, where);
    std::vector<Digest> digests;
    {
      BlockTable first = f.table();
      f.compute(first, kFive);
      digests = first.digests();
    }
    f.push_out();
    EXPECT_EQ(f.swap().blocks, 5);
    EXPECT_EQ(f.cache.stats().cached_blocks, 0);
    BlockTable again = f.table();
    EXPECT_EQ(again.match_prefix(kFive), 0);
    const std::uint64_t before = f.cache.moment();
    EXPECT_EQ(again.bring_back(kFive), std::ssize(kFive));
    expect_right(f, again);
    EXPECT_EQ(again.digests(), digests);
    EXPECT_EQ(again.sealed_blocks(), 5);
    for (const BlockId block : again.blocks()) {
      EXPECT_EQ(f.cache.state(block), BlockState::kShared);
      EXPECT_GT(f.cache.good_at(block), before) << "it was hashed when it came";
    }
    EXPECT_EQ(f.swap().blocks, 0);
    EXPECT_EQ(f.swap().swapped_in, 5U);
    BlockTable other = f.table();
    EXPECT_EQ(other.match_prefix(kFive), std::ssize(kFive)) << "they are indexed";
  }
}

TEST(PrefixCacheSwap, AResidentPrefixGoesOnWithItsSwappedRest) {
  Fixture f(6);
  const std::vector<BlockKey> keys = f.leave(kFive);
  BlockTable other = f.table();
  f.compute(other, tokens(1 + 64 + 64 + 10, 5000));  // four blocks, so that the last three of the five leave
  other.release();
  PrefixCache::Probe probe = f.cache.probe(keys);
  EXPECT_EQ(probe.blocks, 2);
  EXPECT_EQ(probe.cached, 2);
  EXPECT_EQ(probe.swapped, 3);
  const std::int64_t available = f.cache.available_blocks();
  BlockTable again = f.table();
  EXPECT_EQ(again.match_prefix(kFive), 1 + 64);
  EXPECT_EQ(again.bring_back(kFive), 3 * 64);
  EXPECT_EQ(f.cache.available_blocks(), available - probe.cached - probe.swapped);
  expect_right(f, again);
  EXPECT_EQ(again.bring_back(kFive), 0);
}

TEST(PrefixCacheSwap, WhatOneTableBringsBackIsSharedByThoseThatMatchedBefore) {
  Fixture f(12);
  f.leave(kFive);
  f.push_out();
  BlockTable first = f.table();
  BlockTable second = f.table();
  BlockTable third = f.table();
  for (BlockTable* table : {&first, &second, &third}) EXPECT_EQ(table->match_prefix(kFive), 0);
  EXPECT_EQ(first.bring_back(std::span(kFive).first(1 + 2 * 64)), 1 + 2 * 64);
  const std::int64_t available = f.cache.available_blocks();
  EXPECT_EQ(second.bring_back(kFive), std::ssize(kFive));
  EXPECT_EQ(f.cache.available_blocks(), available - 2);
  EXPECT_EQ(third.bring_back(kFive), std::ssize(kFive));
  EXPECT_EQ(f.cache.available_blocks(), available - 2);
  EXPECT_EQ(f.swap().swapped_in, 5U);
  EXPECT_TRUE(std::ranges::equal(second.blocks(), third.blocks()));
  EXPECT_TRUE(std::ranges::equal(first.blocks(), second.blocks().first(3)));
  expect_right(f, third);
}

TEST(PrefixCacheSwap, AnAlteredBlockIsNotUsedNorWhatDescendsFromIt) {
  for (const Where where : {Where::kMemory, Where::kFile}) {
    for (const std::size_t altered : {0U, 2U, 4U}) {
      Fixture f(6, 50, where);
      const std::vector<BlockKey> keys = f.leave(kFive);
      f.push_out();
      f.probe().alter(keys[altered], 17, 0x20);
      BlockTable again = f.table();
      again.match_prefix(kFive);
      EXPECT_EQ(again.bring_back(kFive),
                altered == 0 ? 0 : 1 + 64 * (static_cast<std::int64_t>(altered) - 1));
      EXPECT_EQ(f.swap().damaged, 1U);
      EXPECT_EQ(f.swap().blocks, 0) << "what descends from it is dropped";
      EXPECT_EQ(f.pool.free_blocks(), 6 - std::ssize(again.blocks()));
      f.compute(again, kFive);
      expect_right(f, again);
      EXPECT_EQ(std::vector(again.keys().begin(), again.keys().end()), keys);
    }
  }
}

TEST(PrefixCacheSwap, BranchesOfWhatFollowsAnAlteredBlockAreDroppedToo) {
  Fixture f(12);
  const std::vector<BlockKey> keys = f.leave(kFive);
  std::vector<std::int32_t> branch = kFive;
  branch.back() += 1;
  f.leave(branch);
  f.push_out();
  EXPECT_EQ(f.swap().blocks, 6);
  f.probe().alter(keys[2], 17);
  BlockTable again = f.table();
  again.match_prefix(kFive);
  EXPECT_EQ(again.bring_back(kFive), 1 + 64);
  EXPECT_EQ(f.swap().blocks, 0);
}

TEST(PrefixCacheSwap, WhatWasComputedFromADamagedBlockBeforeBothLeftIsNotUsed) {
  Fixture f(5);
  std::vector<BlockKey> keys;
  {
    BlockTable table = f.table();
    f.compute(table, tokens(1 + 2 * 64));
    f.pool.data(table.blocks()[1])[9] ^= 1;  // from here on, what is computed may be wrong
    f.compute(table, kFive);
    keys.assign(table.keys().begin(), table.keys().end());
  }
  f.push_out();
  BlockTable again = f.table();
  again.match_prefix(kFive);
  EXPECT_EQ(again.bring_back(kFive), 1);
  for (std::size_t i = 2; i < keys.size(); ++i) EXPECT_EQ(f.cache.probe(std::span(&keys[i], 1)).swapped, 0);
}

TEST(PrefixCacheSwap, ADamagedResidentBlockTakesItsSwappedDescendantsWithIt) {
  Fixture f(6);
  const std::vector<BlockKey> keys = f.leave(kFive);
  BlockTable holder = f.table();
  EXPECT_EQ(holder.match_prefix(std::span(kFive).first(65)), 65);
  f.push_out();
  EXPECT_EQ(f.swap().blocks, 3);
  f.pool.data(holder.blocks()[1])[0] ^= 1;
  EXPECT_EQ(f.cache.find_damaged(std::span(&holder.blocks()[1], 1)).size(), 1U);
  EXPECT_EQ(f.cache.discard(holder.blocks()[1]), std::vector{holder.blocks()[1]});
  EXPECT_EQ(f.swap().blocks, 0);
}

TEST(PrefixCacheSwap, ABlockThatIsComputedAgainTakesThePlaceOfTheSwappedOne) {
  Fixture f(6);
  BlockTable slow = f.table();
  ASSERT_TRUE(slow.append(tokens(1 + 64)));
  const std::vector<BlockKey> keys = f.leave(tokens(1 + 2 * 64));
  f.push_out();
  EXPECT_EQ(f.swap().blocks, 3);
  testing::run_kernels(f.pool, slow, 0);
  slow.seal_filled();
  EXPECT_EQ(f.swap().blocks, 0);
  EXPECT_EQ(f.cache.probe(keys).blocks, 2);
}

TEST(PrefixCacheSwap, PinnedAnchorsNeverLeaveAndSwappedOnesComeBackPinned) {
  Fixture f(6);
  const core::BlockLayout layout{70};
  const auto preface = tokens(layout.preface_tokens());
  const std::vector<BlockKey> keys = chain_keys(kRoot, layout, {}, preface);
  {
    const AnchorLease lease = f.cache.lease(keys);
    f.leave(preface, 70);
    f.push_out();
    EXPECT_EQ(f.swap().swapped_out, 0U);
    EXPECT_EQ(f.cache.stats().pinned_blocks, 3);
  }
  f.push_out();
  EXPECT_EQ(f.swap().blocks, 3);
  const AnchorLease lease = f.cache.lease(keys);
  EXPECT_EQ(f.cache.stats().pinned_blocks, 0);
  BlockTable table = f.table(70);
  table.match_prefix(preface);
  EXPECT_EQ(table.bring_back(preface), layout.preface_tokens());
  EXPECT_EQ(f.cache.stats().pinned_blocks, 3);
  EXPECT_EQ(table.pinned_blocks(), 3);
}

/// Room for a chain is made by swapping others, which must not cost the chain itself more than its end.
TEST(PrefixCacheSwap, AChainComesBackInAFullPoolWithAFullArea) {
  Fixture f(5, 5);
  f.leave(kFive);
  const auto others = tokens(1 + 4 * 64, 5000);
  f.leave(others);  // the five are swapped, and the area is full
  EXPECT_EQ(f.swap().blocks, 5);
  BlockTable again = f.table();
  again.match_prefix(kFive);
  EXPECT_GE(again.bring_back(kFive), 1 + 3 * 64);
  f.compute(again, kFive);
  expect_right(f, again);
}

TEST(PrefixCacheSwap, BringsBackAsMuchAsThereIsRoomFor) {
  Fixture f(5);
  f.leave(kFive);
  f.push_out();
  const std::vector<BlockId> held = {f.cache.acquire().value(), f.cache.acquire().value()};
  BlockTable again = f.table();
  again.match_prefix(kFive);
  EXPECT_EQ(again.bring_back(kFive), 1 + 2 * 64);
  EXPECT_EQ(f.swap().blocks, 2);
  EXPECT_EQ(f.cache.available_blocks(), 0);
  expect_right(f, again);
  for (const BlockId block : held) f.cache.release(block);
}

TEST(PrefixCacheSwap, ClearingDropsWhatIsSwappedAndWithoutAreaNothingIs) {
  Fixture f(5);
  const std::vector<BlockKey> keys = f.leave(kFive);
  f.push_out();
  f.cache.clear();
  EXPECT_EQ(f.cache.probe(keys).swapped, 0);
  EXPECT_EQ(f.swap().blocks, 0);
  BlockPool pool = std::move(BlockPool::create(kGeometry, 2)).value();
  PrefixCache plain(pool, host_page_hasher(pool));
  EXPECT_FALSE(plain.swaps());
  EXPECT_TRUE(plain.bring_back(keys).empty());
}

TEST(PrefixCacheSwap, ABlockLeavesWithItsFinalDigest) {
  BlockPool pool = std::move(BlockPool::create(kGeometry, 1)).value();
  int waits = 0;
  const PageHasher late = [&](std::span<const BlockId> blocks) {
    return std::make_unique<testing::LateDigests>(pool, blocks, waits);
  };
  PrefixCache cache(pool, late, true, area(1, Where::kMemory));
  const BlockId block = cache.acquire().value();
  pool.data(block)[5] = 77;
  const SealRequest request{kRoot, {sha256(std::string_view("sink"))}, block, core::Segment::kSink};
  cache.seal(std::span(&request, 1));
  cache.release(block);
  cache.release(cache.acquire().value());  // whoever gets the block next writes to it
  const std::vector<BlockId> back = cache.bring_back(std::span(&request.key, 1));
  ASSERT_EQ(back.size(), 1U);
  EXPECT_EQ(pool.data(back[0])[5], 77);
  cache.release(back[0]);
}

}  // namespace
}  // namespace fieldprint::kv
