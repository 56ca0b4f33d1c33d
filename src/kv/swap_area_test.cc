#include "kv/swap_area.h"

#include <gtest/gtest.h>

#include <set>

#include "kv/swap_testing.h"

namespace fieldprint::kv {
namespace {

constexpr KvGeometry kGeometry{.layers = 1, .kv_heads = 1, .head_dim = 2};

BlockKey key(const std::string& name) { return {sha256(name)}; }

/// Storage in memory in which chosen slots fail, as a disk with bad sectors does.
class FailingStorage final : public SwapStorage {
 public:
  std::uint8_t* room(std::int64_t slot) override { return memory_->room(slot); }
  Status store(std::int64_t slot) override {
    if (bad.contains(slot)) return environment_error(fmt::format("slot {} cannot be written", slot));
    return memory_->store(slot);
  }
  Result<const std::uint8_t*> load(std::int64_t slot) override {
    if (bad.contains(slot)) return environment_error(fmt::format("slot {} cannot be read", slot));
    return memory_->load(slot);
  }
  std::set<std::int64_t> bad;

 private:
  std::unique_ptr<SwapStorage> memory_ = swap_memory(kGeometry.block_bytes(), 8).value();
};

struct Fixture {
  explicit Fixture(std::int64_t slots) {
    auto storage = std::make_unique<FailingStorage>();
    disk = storage.get();
    area = std::make_unique<SwapArea>(std::move(storage), slots);
    block = pool.acquire();
  }
  ~Fixture() { pool.release(block); }

  void put(const std::string& name, const std::string& parent) {
    pool.data(block)[3] = key(name).digest[0];
    area->put({key(name), key(parent), sha256(name)}, pool, block);
  }
  /// Whether it came out with what was put in.
  bool take(const std::string& name) {
    const auto content = area->take(key(name), pool, block);
    return content && content->digest == sha256(name) && pool.data(block)[3] == key(name).digest[0];
  }
  std::vector<BlockKey> keys() { return SwapProbe(*area).keys(); }

  BlockPool pool = std::move(BlockPool::create(kGeometry, 1)).value();
  FailingStorage* disk = nullptr;
  std::unique_ptr<SwapArea> area;
  BlockId block = 0;
};

TEST(SwapArea, GivesBackWhatWasPutIn) {
  Fixture f(3);
  f.put("b", "a");
  f.put("a", "root");
  EXPECT_EQ(f.area->stats().blocks, 2);
  EXPECT_TRUE(f.take("a"));
  EXPECT_TRUE(f.take("b"));
  EXPECT_FALSE(f.area->contains(key("a")));
  EXPECT_EQ(f.area->stats().blocks, 0);
  EXPECT_EQ(f.area->stats().swapped_out, 2U);
}

TEST(SwapArea, DropsTheOldestWhenItIsFullUnlessItIsToBeKept) {
  Fixture f(3);
  f.put("b", "a");
  f.put("a", "root");
  f.put("x", "root");
  const std::vector<BlockKey> chain = {key("a"), key("b"), key("not here")};
  f.area->keep_longest(chain);
  f.put("y", "root");
  EXPECT_EQ(f.keys(), (std::vector{key("b"), key("a"), key("y")}));
  f.put("z", "root");
  EXPECT_EQ(f.keys(), (std::vector{key("a"), key("y"), key("z")}));
}

TEST(SwapArea, DropsABlockWithAllThatDescendsFromIt) {
  Fixture f(8);
  f.put("c", "b");
  f.put("b", "a");
  f.put("b2", "a");
  f.put("a", "root");
  f.put("x", "root");
  f.area->drop(std::vector{key("a")});
  EXPECT_EQ(f.keys(), std::vector{key("x")});
  f.put("d", "c");
  f.area->drop(std::vector{key("c")});
  EXPECT_EQ(f.keys(), std::vector{key("x")});
  f.put("y", "x");
  f.area->supersede(key("x"));
  EXPECT_EQ(f.keys(), std::vector<BlockKey>());
}

TEST(SwapArea, AWriteThatFailsLosesItsBlockAndEndsTheGrowth) {
  Fixture f(5);
  f.put("b", "a");
  f.put("x", "root");
  f.disk->bad = {2};
  f.put("a", "root");
  EXPECT_EQ(f.keys(), std::vector{key("x")}) << "b would not be found without a";
  EXPECT_EQ(f.area->take_trouble(), "slot 2 cannot be written");
  EXPECT_EQ(f.area->take_trouble(), std::nullopt);
  f.disk->bad.clear();
  for (const char* name : {"1", "2", "3"}) f.put(name, "root");
  EXPECT_EQ(f.keys(), (std::vector{key("2"), key("3")})) << "it stays as large as it was";
  EXPECT_EQ(f.area->stats().failures, 1U);
}

TEST(SwapArea, ReadsThatFailLoseTheirBlocksUntilNothingIsLeft) {
  Fixture f(2);
  f.put("b", "a");
  f.put("a", "root");
  f.disk->bad = {0, 1};
  EXPECT_FALSE(f.take("a"));
  EXPECT_EQ(f.area->stats().blocks, 0);
  f.put("c", "root");
  f.put("d", "root");
  EXPECT_EQ(f.area->stats().blocks, 0);
  EXPECT_EQ(f.area->stats().failures, 2U) << "the slots are not used again";
  EXPECT_EQ(f.area->take_trouble(), "slot 1 cannot be read");
}

TEST(SwapArea, SizesThatHoldNoBlockOrAreTooLargeAreRefused) {
  for (const std::int64_t bytes : {std::int64_t{1}, kGeometry.block_bytes() - 1, std::int64_t{1} << 47}) {
    const auto area = SwapArea::create(kGeometry, {bytes, ""});
    ASSERT_FALSE(area.ok());
    EXPECT_EQ(area.error().kind, ErrorKind::kCaller);
  }
  EXPECT_TRUE(SwapArea::create(kGeometry, {kGeometry.block_bytes(), ""}).ok());
}

}  // namespace
}  // namespace fieldprint::kv
