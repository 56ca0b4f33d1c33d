#include "kv/block_table.h"

#include <gtest/gtest.h>

#include <numeric>
#include <optional>

#include "kv/fake_kernel.h"

namespace fieldprint::kv {
namespace {

constexpr KvGeometry kGeometry{.layers = 2, .kv_heads = 1, .head_dim = 4};
const BlockKey kRoot = root_key(sha256(std::string_view("model")), "canon-1");

std::vector<std::int32_t> iota(std::int64_t count, std::int32_t first = 0) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

struct Fixture {
  explicit Fixture(std::int64_t blocks, bool enabled = true)
      : pool(std::move(BlockPool::create(kGeometry, blocks, 3)).value()),
        cache(pool, host_page_hasher(pool), enabled) {}

  BlockTable table(std::int64_t anchors, AnchorOdds odds = {}) {
    return BlockTable(cache, kRoot, core::BlockLayout{anchors}, odds);
  }

  /// A step: slots, bytes, seals.
  bool step(BlockTable& table, std::span<const std::int32_t> tokens) {
    const std::int64_t from = table.size();
    if (!table.append(tokens)) {
      return false;
    }
    testing::run_kernels(pool, table, from);
    table.seal_filled();
    return true;
  }

  void expect_right_bytes(const BlockTable& table) {
    for (std::size_t i = 0; i < table.blocks().size(); ++i) {
      EXPECT_TRUE(testing::holds_expected_bytes(pool, table, static_cast<std::int64_t>(i))) << i;
    }
  }

  BlockPool pool;
  PrefixCache cache;
};

TEST(BlockTable, PutsEveryTokenInItsSegmentsBlock) {
  Fixture f(8);
  BlockTable table = f.table(70);
  ASSERT_TRUE(f.step(table, iota(71 + 70)));
  ASSERT_EQ(table.blocks().size(), 5U);
  EXPECT_EQ(table.sealed_blocks(), 4);
  EXPECT_EQ(table.slot(0).block, table.blocks()[0]);
  EXPECT_EQ(table.slot(65).block, table.blocks()[2]);
  EXPECT_EQ(table.slot(65).slot, 0);
  EXPECT_EQ(table.slot(71).block, table.blocks()[3]);
  EXPECT_EQ(table.slot(140).slot, 5);
  f.expect_right_bytes(table);
}

TEST(BlockTable, StepsOfAnySizeGiveTheSameKeysAndDigests) {
  const std::vector<std::int32_t> tokens = iota(1 + 40 + 200);
  std::vector<Digest> digests;
  std::vector<BlockKey> keys;
  for (const std::size_t chunk : {241U, 1U, 7U, 64U, 100U}) {
    Fixture f(8);
    BlockTable table = f.table(40, {0.5F, 2.0F});
    for (std::size_t i = 0; i < tokens.size(); i += chunk) {
      ASSERT_TRUE(f.step(table, std::span(tokens).subspan(i, std::min(chunk, tokens.size() - i))));
    }
    if (digests.empty()) {
      digests = table.digests();
      keys.assign(table.keys().begin(), table.keys().end());
    }
    EXPECT_EQ(table.digests(), digests);
    EXPECT_EQ(std::vector(table.keys().begin(), table.keys().end()), keys);
  }
  EXPECT_EQ(keys, chain_keys(kRoot, core::BlockLayout{40}, {0.5F, 2.0F}, tokens));
}

TEST(BlockTable, MatchTakesWhatAnEarlierSequenceSealed) {
  Fixture f(8);
  const std::vector<std::int32_t> tokens = iota(1 + 10 + 130);
  {
    BlockTable first = f.table(10);
    ASSERT_TRUE(f.step(first, tokens));
  }
  BlockTable second = f.table(10);
  EXPECT_EQ(second.match_prefix(std::span(tokens).first(140)), 1 + 10 + 128);
  EXPECT_EQ(second.sealed_blocks(), 4);
  ASSERT_TRUE(f.step(second, std::span(tokens).subspan(139)));
  f.expect_right_bytes(second);
  BlockTable other_odds = f.table(10, {0.25F, 8.0F});
  EXPECT_EQ(other_odds.match_prefix(tokens), 11) << "the context depends on the floor";
}

TEST(BlockTable, RefusesToGrowBeyondThePoolAndStaysAsItWas) {
  Fixture f(3);
  BlockTable table = f.table(0);
  ASSERT_TRUE(f.step(table, iota(65)));
  EXPECT_EQ(table.blocks_needed(64), 1);
  EXPECT_EQ(table.blocks_needed(65), 2);
  EXPECT_FALSE(table.append(iota(65)));
  EXPECT_EQ(table.size(), 65);
  EXPECT_EQ(table.blocks().size(), 2U);
  EXPECT_TRUE(f.step(table, iota(64)));
}

TEST(BlockTable, ForksShareEverythingUntilOneWrites) {
  Fixture f(6);
  BlockTable parent = f.table(0);
  ASSERT_TRUE(f.step(parent, iota(70)));
  BlockTable child = parent.fork();
  EXPECT_EQ(f.pool.free_blocks(), 3);
  EXPECT_TRUE(child.tail_shared());
  EXPECT_EQ(child.blocks_needed(1), 1);
  EXPECT_EQ(child.reclaimable_blocks(), 0);
  ASSERT_TRUE(f.step(child, iota(3, 500)));
  EXPECT_FALSE(parent.tail_shared());
  EXPECT_EQ(parent.blocks_needed(1), 0);
  EXPECT_EQ(parent.reclaimable_blocks(), 1);
  ASSERT_TRUE(f.step(parent, iota(1, 900)));
  f.expect_right_bytes(parent);
  f.expect_right_bytes(child);
}

TEST(BlockTable, ForksThatFillTheSameTokensEndInOneBlock) {
  Fixture f(6);
  BlockTable parent = f.table(0);
  ASSERT_TRUE(f.step(parent, iota(60)));
  BlockTable child = parent.fork();
  const std::vector<std::int32_t> rest = iota(5, 60);
  ASSERT_TRUE(child.append(rest));
  ASSERT_TRUE(parent.append(rest));
  testing::run_kernels(f.pool, child, 60);
  testing::run_kernels(f.pool, parent, 60);
  EXPECT_NE(child.blocks()[1], parent.blocks()[1]);
  BlockTable* const both[] = {&parent, &child};
  EXPECT_EQ(BlockTable::seal_filled(both), 2);
  EXPECT_EQ(child.blocks()[1], parent.blocks()[1]);
  EXPECT_EQ(f.cache.stats().duplicates, 1U);
}

TEST(BlockTable, TruncateLeavesCanonicalBytesAndTheCacheUntouched) {
  for (const std::int64_t count : {11, 12, 60, 75, 76, 139, 140, 150}) {
    Fixture f(8);
    BlockTable table = f.table(10);
    ASSERT_TRUE(f.step(table, iota(150)));
    ASSERT_TRUE(table.truncate(count));
    EXPECT_EQ(table.size(), count);
    f.expect_right_bytes(table);
    BlockTable whole = f.table(10);
    EXPECT_EQ(whole.match_prefix(iota(150)), 1 + 10 + 128) << "sealed blocks stay cached";
    f.expect_right_bytes(whole);
    ASSERT_TRUE(f.step(table, iota(40, 700)));
    f.expect_right_bytes(table);
    f.expect_right_bytes(whole);
  }
}

TEST(BlockTable, TruncateInsideASharedBlockNeedsABlock) {
  Fixture f(2);
  BlockTable table = f.table(0);
  ASSERT_TRUE(f.step(table, iota(65)));
  EXPECT_FALSE(table.truncate(30));
  EXPECT_EQ(table.size(), 65);
  EXPECT_TRUE(table.truncate(1));
  EXPECT_EQ(table.blocks().size(), 1U);
}

TEST(BlockTable, ReleasedTableCanBeFilledAgainWithTheSameResult) {
  Fixture f(6, false);
  BlockTable table = f.table(5);
  ASSERT_TRUE(f.step(table, iota(100)));
  const std::vector<Digest> before = table.digests();
  table.release();
  EXPECT_EQ(f.pool.free_blocks(), 6);
  ASSERT_TRUE(f.step(table, iota(100)));
  EXPECT_EQ(table.digests(), before);
}

TEST(BlockTable, LongChainsAreEvictedFromTheirEnd) {
  Fixture f(5);
  {
    BlockTable table = f.table(0);
    ASSERT_TRUE(f.step(table, iota(1 + 4 * 64)));
  }
  BlockTable other = f.table(0);
  ASSERT_TRUE(f.step(other, iota(65, 9000)));
  BlockTable again = f.table(0);
  EXPECT_EQ(again.match_prefix(iota(1 + 4 * 64)), 1 + 2 * 64);
}

}  // namespace
}  // namespace fieldprint::kv
