#include "kv/block_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "exact/arith.h"

namespace fieldprint::kv {
namespace {

constexpr KvGeometry kGeometry{.layers = 2, .kv_heads = 3, .head_dim = 16};

BlockPool make_pool(std::int64_t blocks, std::uint64_t seed = 0) {
  return std::move(BlockPool::create(kGeometry, blocks, seed)).value();
}

std::vector<std::uint8_t> bytes_of(const BlockPool& pool, BlockId block) {
  const std::uint8_t* data = pool.data(block);
  return {data, data + pool.geometry().block_bytes()};
}

void fill(BlockPool& pool, BlockId block, std::uint8_t value) {
  std::memset(pool.data(block), value, static_cast<std::size_t>(pool.geometry().block_bytes()));
}

TEST(BlockPool, GeometryFollowsThePageLayout) {
  EXPECT_EQ(kGeometry.page_bytes(), 64 * (16 + 16));
  EXPECT_EQ(kGeometry.block_bytes(), 6 * kGeometry.page_bytes());
  EXPECT_EQ(kGeometry.layer_offset(1), 3 * kGeometry.page_bytes());
  BlockPool pool = make_pool(4);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(pool.base()) % 64, 0U);
  const backend::KvLayer layer = pool.layer(1);
  EXPECT_EQ(layer.pool + 2 * layer.block_stride + layer.layer_offset,
            pool.data(2) + kGeometry.layer_offset(1));
}

TEST(BlockPool, AcquiredBlocksAreZeroEvenWhenReused) {
  BlockPool pool = make_pool(2);
  const std::vector<std::uint8_t> zeros(static_cast<std::size_t>(kGeometry.block_bytes()), 0);
  for (int round = 0; round < 4; ++round) {
    const BlockId block = pool.acquire();
    EXPECT_EQ(bytes_of(pool, block), zeros);
    fill(pool, block, 0xA5);
    EXPECT_TRUE(pool.release(block));
  }
}

TEST(BlockPool, ReleasedBlocksAreReusedBeforeFreshOnes) {
  BlockPool pool = make_pool(8);
  const BlockId first = pool.acquire();
  pool.release(first);
  EXPECT_EQ(pool.acquire(), first);
}

TEST(BlockPool, BlockIsFreeOnlyAfterItsLastReference) {
  BlockPool pool = make_pool(1);
  const BlockId block = pool.acquire();
  pool.retain(block);
  EXPECT_FALSE(pool.release(block));
  EXPECT_EQ(pool.free_blocks(), 0);
  EXPECT_TRUE(pool.release(block));
  EXPECT_EQ(pool.free_blocks(), 1);
}

TEST(BlockPool, CopyOnWriteCopiesOnlySharedBlocks) {
  BlockPool pool = make_pool(3);
  const BlockId block = pool.acquire();
  fill(pool, block, 7);
  EXPECT_EQ(pool.copy_on_write(block), block);
  pool.retain(block);
  const BlockId copy = pool.copy_on_write(block);
  EXPECT_NE(copy, block);
  EXPECT_EQ(bytes_of(pool, copy), bytes_of(pool, block));
  EXPECT_EQ(pool.references(block), 1);
  EXPECT_EQ(pool.references(copy), 1);
}

TEST(BlockPool, ClearSlotsZeroesThoseSlotsOfEveryPageAndNothingElse) {
  BlockPool pool = make_pool(1);
  const BlockId block = pool.acquire();
  for (const std::int32_t cut : {0, 1, 8, 15, 16, 37, 63, 64}) {
    fill(pool, block, 0xFF);
    pool.clear_slots(block, cut);
    for (std::int64_t page = 0; page < kGeometry.pages_per_block(); ++page) {
      const std::uint8_t* keys = pool.data(block) + page * kGeometry.page_bytes();
      for (std::int64_t slot = 0; slot < 64; ++slot) {
        const std::uint8_t expected = slot < cut ? 0xFF : 0;
        for (std::int64_t d = 0; d < 16; ++d) {
          ASSERT_EQ(keys[slot * 16 + d], expected);
          ASSERT_EQ(keys[64 * 16 + d * 64 + exact::value_slot(static_cast<std::int32_t>(slot))], expected);
        }
      }
    }
  }
}

TEST(BlockPool, PlacementSeedOnlyReordersTheBlocks) {
  const auto order = [](std::uint64_t seed) {
    BlockPool pool = make_pool(64, seed);
    std::vector<BlockId> blocks;
    while (pool.free_blocks() > 0) {
      blocks.push_back(pool.acquire());
    }
    return blocks;
  };
  std::vector<BlockId> in_order(64);
  std::iota(in_order.begin(), in_order.end(), 0);
  EXPECT_EQ(order(0), in_order);
  std::vector<BlockId> shuffled = order(9);
  EXPECT_NE(shuffled, in_order);
  EXPECT_EQ(shuffled, order(9));
  EXPECT_NE(shuffled, order(10));
  std::sort(shuffled.begin(), shuffled.end());
  EXPECT_EQ(shuffled, in_order);
}

TEST(BlockPool, RefusesBlockCountsOutsideTheLimits) {
  for (const std::int64_t blocks : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1} << 40}) {
    const auto pool = BlockPool::create(kGeometry, blocks);
    ASSERT_FALSE(pool.ok());
    EXPECT_EQ(pool.error().kind, ErrorKind::kCaller);
  }
}

TEST(BlockPool, RefusedAddressSpaceIsAnEnvironmentError) {
  const auto memory = map_host_memory(std::int64_t{1} << 60);
  ASSERT_FALSE(memory.ok());
  EXPECT_EQ(memory.error().kind, ErrorKind::kEnvironment);
}

TEST(BlockPoolDeathTest, ReleasingAFreeBlockStopsTheProcess) {
  BlockPool pool = make_pool(2);
  const BlockId block = pool.acquire();
  pool.release(block);
  EXPECT_DEATH(pool.release(block), "broken invariant");
}

}  // namespace
}  // namespace fieldprint::kv
