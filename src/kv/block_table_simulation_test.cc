#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>

#include "kv/block_table.h"
#include "kv/fake_kernel.h"
#include "kv/swap_testing.h"

namespace fieldprint::kv {
namespace {

constexpr KvGeometry kGeometry{.layers = 1, .kv_heads = 2, .head_dim = 2};
const BlockKey kRoot = root_key(sha256(std::string_view("model")), "canon-1");

constexpr std::int64_t kManySlots = 4000;  ///< more than a life fills

/// No swap area, one that is always full, one in memory and one in a file.
std::unique_ptr<SwapArea> area_for(std::uint64_t seed) {
  constexpr std::int64_t kSlots[] = {0, 3, kManySlots, kManySlots};
  const std::size_t kind = seed / 3 % 4;
  if (kind == 0) return nullptr;
  const std::string path = ::testing::TempDir() + "/simulation-" + std::to_string(::getpid());
  return SwapArea::create(kGeometry, {kSlots[kind] * kGeometry.block_bytes(), kind == 3 ? path : ""}).value();
}

/// Random tables over one pool, checked after every operation against what follows from the tables alone:
/// who holds what, which bytes must be where, which digests they have.
class Simulation {
 public:
  explicit Simulation(std::uint64_t seed)
      : random_(seed),
        pool_(
            std::move(BlockPool::create(kGeometry, 8 + static_cast<std::int64_t>(seed % 17), seed)).value()),
        cache_(pool_, host_page_hasher(pool_), seed % 3 != 0, area_for(seed)),
        never_full_(seed / 3 % 4 >= 2) {}

  void run(int operations) {
    for (int i = 0; i < operations; ++i) {
      operate();
      check();
      if (::testing::Test::HasFailure()) {
        return;
      }
    }
    tables_.clear();
    leases_.clear();
    EXPECT_EQ(cache_.available_blocks(), pool_.blocks());
    EXPECT_EQ(cache_.stats().pinned_blocks, 0);
    swap_ = cache_.stats().swap;
    cache_.clear();
    EXPECT_EQ(cache_.stats().swap.blocks, 0);
    EXPECT_EQ(pool_.free_blocks(), pool_.blocks());
  }

  /// Before the end.
  const SwapStats& swap() const { return swap_; }

 private:
  struct Lease {
    AnchorLease lease;
    std::vector<BlockKey> keys;
  };

  /// What a table held that is gone.
  struct Left {
    core::BlockLayout layout;
    AnchorOdds odds;
    std::vector<std::int32_t> tokens;
  };

  std::size_t below(std::size_t bound) { return static_cast<std::size_t>(random_() % bound); }

  /// Few families, so that sequences share prefixes; anchors follow from the layout.
  std::vector<std::int32_t> next_tokens(std::int64_t from, std::int64_t count, std::size_t family) {
    std::vector<std::int32_t> tokens;
    for (std::int64_t i = from; i < from + count; ++i) {
      tokens.push_back(static_cast<std::int32_t>(i < 100 ? i : i + 1000 * static_cast<std::int64_t>(family)));
    }
    return tokens;
  }

  core::BlockLayout random_layout() {
    constexpr std::int64_t kAnchors[] = {0, 5, 70};
    return {kAnchors[below(3)]};
  }

  void operate() {
    const std::size_t choice = below(100);
    if (choice < 20 || tables_.empty()) {
      create();
    } else if (choice < 55) {
      append(*tables_[below(tables_.size())]);
    } else if (choice < 60) {
      tables_.push_back(std::make_unique<BlockTable>(tables_[below(tables_.size())]->fork()));
    } else if (choice < 66) {
      truncate(*tables_[below(tables_.size())]);
    } else if (choice < 82) {
      for (std::size_t i = 1 + below(4); i > 0 && !tables_.empty(); --i) end();
    } else if (choice < 87) {
      lease();
    } else if (choice < 91 && !leases_.empty()) {
      leases_.erase(leases_.begin() + static_cast<std::ptrdiff_t>(below(leases_.size())));
    } else if (choice < 94) {
      damage();
    } else if (choice < 99) {
      alter();
    } else {
      cache_.clear();
    }
  }

  /// A sequence ends, or is preempted and may come back.
  void end() {
    const auto ended = tables_.begin() + static_cast<std::ptrdiff_t>(below(tables_.size()));
    const BlockTable& table = **ended;
    if (below(3) > 0) {
      left_.push_back({table.layout(), table.odds(), {table.tokens().begin(), table.tokens().end()}});
    }
    tables_.erase(ended);
  }

  void create() {
    Left from{random_layout(), below(2) == 0 ? AnchorOdds{} : AnchorOdds{0.5F, 4.0F},
              next_tokens(0, 1 + static_cast<std::int64_t>(below(300)), below(3))};
    if (!left_.empty() && below(3) > 0) {
      const auto back = left_.begin() + static_cast<std::ptrdiff_t>(below(left_.size()));
      from = std::move(*back);
      left_.erase(back);
    }
    const std::vector<std::int32_t>& tokens = from.tokens;
    auto table = std::make_unique<BlockTable>(cache_, kRoot, from.layout, from.odds);
    const std::vector<BlockKey> keys = chain_keys(kRoot, table->layout(), table->odds(), tokens);
    const PrefixCache::Probe probe = cache_.probe(keys);
    const std::int64_t available = cache_.available_blocks();
    const std::int64_t matched = table->match_prefix(tokens);
    EXPECT_EQ(static_cast<std::int64_t>(table->blocks().size()), probe.blocks);
    EXPECT_EQ(cache_.available_blocks(), available - probe.cached);
    EXPECT_EQ(table->pinned_blocks(), probe.pinned);
    EXPECT_EQ(table->size(), matched);
    bring_back(*table, tokens, std::span(keys).subspan(static_cast<std::size_t>(probe.blocks)),
               probe.swapped);
    tables_.push_back(std::move(table));
  }

  /// All that is swapped, as far as there are blocks for it, up to the first that was altered.
  void bring_back(BlockTable& table, std::span<const std::int32_t> tokens, std::span<const BlockKey> keys,
                  std::int64_t swapped) {
    const std::int64_t available = cache_.available_blocks();
    const std::int64_t held = std::ssize(table.blocks());
    const std::int64_t before = table.size();
    const std::int64_t added = table.bring_back(tokens);
    EXPECT_EQ(table.size(), before + added);
    const std::int64_t came = std::ssize(table.blocks()) - held;
    EXPECT_EQ(cache_.available_blocks(), available - came);
    std::int64_t expected = std::min(swapped, available);
    for (std::int64_t i = 0; i < expected; ++i) {
      if (altered_.contains(keys[static_cast<std::size_t>(i)])) expected = i;
    }
    EXPECT_LE(came, expected);
    if (never_full_) {
      EXPECT_EQ(came, expected);
    }
  }

  /// Alters a bit of a swapped block.
  void alter() {
    if (!cache_.swaps()) return;
    SwapProbe probe(cache_);
    const std::vector<BlockKey> keys = probe.keys();
    if (keys.empty()) return;
    const BlockKey key = keys[below(keys.size())];
    if (!altered_.insert(key).second) return;  // a second time might mend it
    probe.alter(key, static_cast<std::int64_t>(below(static_cast<std::size_t>(kGeometry.block_bytes()))), 4);
  }

  void append(BlockTable& table) {
    const std::vector<std::int32_t> tokens =
        next_tokens(table.size(), 1 + static_cast<std::int64_t>(below(150)), below(3));
    const auto count = static_cast<std::int64_t>(tokens.size());
    const std::int64_t needed = table.blocks_needed(count);
    const std::int64_t available = cache_.available_blocks();
    const std::int64_t from = table.size();
    const bool grown = table.append(tokens);
    EXPECT_EQ(grown, needed <= available);
    if (grown) {
      EXPECT_EQ(cache_.available_blocks(), available - needed);
      testing::run_kernels(pool_, table, from);
      table.seal_filled();
    } else {
      EXPECT_EQ(table.size(), from);
    }
  }

  void truncate(BlockTable& table) {
    const std::int64_t preface = table.layout().preface_tokens();
    if (table.size() > preface) {
      const auto count =
          preface + static_cast<std::int64_t>(below(static_cast<std::size_t>(table.size() - preface + 1)));
      const std::int64_t before = table.size();
      const bool cut = table.truncate(count);
      EXPECT_EQ(table.size(), cut ? count : before);
      EXPECT_TRUE(cut || cache_.available_blocks() == 0);
    }
  }

  void lease() {
    const core::BlockLayout layout = random_layout();
    std::vector<BlockKey> keys = chain_keys(kRoot, layout, {}, next_tokens(0, layout.preface_tokens(), 0));
    if (leases_.size() < 4) {
      leases_.push_back({cache_.lease(keys), keys});
    }
  }

  /// Flips a bit of a sealed block; the scrubber's part, and the engine's: nobody keeps what came of it.
  void damage() {
    const BlockTable& table = *tables_[below(tables_.size())];
    if (table.sealed_blocks() == 0) {
      return;
    }
    const BlockId block = table.blocks()[below(static_cast<std::size_t>(table.sealed_blocks()))];
    EXPECT_TRUE(cache_.find_damaged(std::span(&block, 1)).empty());
    pool_.data(block)[below(static_cast<std::size_t>(kGeometry.block_bytes()))] ^= 0x10;
    EXPECT_EQ(cache_.find_damaged(std::span(&block, 1)), std::vector{block});
    const std::vector<BlockId> lost = cache_.discard(block);
    pinned_.clear();
    std::erase_if(tables_, [&lost](const auto& t) {
      return std::any_of(t->blocks().begin(), t->blocks().end(),
                         [&lost](BlockId b) { return std::find(lost.begin(), lost.end(), b) != lost.end(); });
    });
    for (const BlockId gone : lost) {
      EXPECT_EQ(cache_.state(gone), BlockState::kFree);
    }
  }

  void check() {
    std::map<BlockId, std::int32_t> holders;
    for (const auto& table : tables_) {
      for (const BlockId block : table->blocks()) {
        ++holders[block];
      }
    }
    std::set<BlockKey> leased;
    for (const Lease& lease : leases_) {
      leased.insert(lease.keys.begin(), lease.keys.end());
    }
    check_tables(holders, leased);
    check_pool(holders, leased);
    if (cache_.swaps()) check_swapped();
  }

  /// Content is in the pool or swapped, and whatever is swapped can be reached from the root.
  void check_swapped() {
    const SwapProbe probe(cache_);
    const std::vector<BlockKey> keys = probe.keys();
    const std::set<BlockKey> swapped(keys.begin(), keys.end());
    ASSERT_EQ(std::ssize(swapped), cache_.stats().swap.blocks);
    std::erase_if(altered_, [&](const BlockKey& key) { return !swapped.contains(key); });
    for (const BlockKey& key : keys) {
      ASSERT_EQ(cache_.probe(std::span(&key, 1)).blocks, 0) << "resident and swapped";
      const BlockKey& parent = probe.parent(key);
      ASSERT_TRUE(parent == kRoot || swapped.contains(parent) ||
                  cache_.probe(std::span(&parent, 1)).blocks == 1)
          << "cannot be found any more";
    }
  }

  void check_tables(const std::map<BlockId, std::int32_t>& holders, const std::set<BlockKey>& leased) {
    for (const auto& table : tables_) {
      const std::vector<BlockKey> keys = chain_keys(kRoot, table->layout(), table->odds(), table->tokens());
      ASSERT_EQ(std::vector(table->keys().begin(), table->keys().end()), keys);
      ASSERT_EQ(static_cast<std::int64_t>(table->blocks().size()), table->layout().blocks_for(table->size()));
      std::int64_t reclaimable = 0;
      for (std::size_t i = 0; i < table->blocks().size(); ++i) {
        const BlockId block = table->blocks()[i];
        ASSERT_TRUE(testing::holds_expected_bytes(pool_, *table, static_cast<std::int64_t>(i)));
        ASSERT_EQ(cache_.sealed(block), i < keys.size());
        const bool pinned = cache_.state(block) == BlockState::kPinned;
        ASSERT_TRUE(!pinned || leased.contains(keys[i]));
        reclaimable += holders.at(block) == 1 && !pinned ? 1 : 0;
      }
      ASSERT_EQ(table->reclaimable_blocks(), reclaimable);
    }
    if (!tables_.empty()) {
      const BlockTable& sampled = *tables_[below(tables_.size())];
      ASSERT_EQ(sampled.digests(), block_digests(kGeometry, host_page_hasher(pool_), sampled.blocks()));
    }
  }

  void check_pool(const std::map<BlockId, std::int32_t>& holders, const std::set<BlockKey>& leased) {
    std::map<BlockState, std::int64_t> states;
    std::int64_t unavailable = 0;
    for (BlockId block = 0; block < pool_.blocks(); ++block) {
      const auto held = holders.find(block);
      const std::int32_t count = held == holders.end() ? 0 : held->second;
      const BlockState state = cache_.state(block);
      ++states[state];
      ASSERT_EQ(state == BlockState::kFree ? 0 : cache_.holders(block), count);
      ASSERT_TRUE(count == 0 || (state != BlockState::kFree && state != BlockState::kCached));
      ASSERT_TRUE(count > 0 || (state != BlockState::kShared && state != BlockState::kExclusive)) << "leak";
      ASSERT_EQ(state == BlockState::kExclusive, count == 1 && !cache_.sealed(block));
      unavailable += count > 0 || state == BlockState::kPinned ? 1 : 0;
    }
    ASSERT_EQ(states[BlockState::kFree], pool_.free_blocks());
    ASSERT_EQ(states[BlockState::kCached], cache_.stats().cached_blocks);
    ASSERT_EQ(states[BlockState::kPinned], cache_.stats().pinned_blocks);
    ASSERT_EQ(cache_.available_blocks(), pool_.blocks() - unavailable);
    check_pins(leased);
  }

  /// What was pinned stays indexed until its lease ends or it is found damaged.
  void check_pins(const std::set<BlockKey>& leased) {
    std::set<BlockKey> pinned;
    for (const BlockKey& key : leased) {
      if (cache_.probe(std::span(&key, 1)).blocks == 1) {
        pinned.insert(key);
      }
    }
    ASSERT_EQ(static_cast<std::int64_t>(pinned.size()), cache_.stats().pinned_blocks);
    for (const BlockKey& key : pinned_) {
      ASSERT_TRUE(pinned.contains(key) || !leased.contains(key)) << "a pinned block was evicted";
    }
    pinned_ = pinned;
  }

  std::mt19937_64 random_;
  BlockPool pool_;
  PrefixCache cache_;
  bool never_full_;             ///< no swapped block is dropped for want of room
  std::set<BlockKey> altered_;  ///< swapped blocks
  SwapStats swap_;
  std::vector<Lease> leases_;
  std::set<BlockKey> pinned_;  ///< after the last operation
  std::vector<std::unique_ptr<BlockTable>> tables_;
  std::vector<Left> left_;
};

TEST(BlockTableSimulation, PoolCacheAndTablesAgreeWithTheNaiveModel) {
  SwapStats all;
  for (std::uint64_t seed = 1; seed <= 80; ++seed) {
    SCOPED_TRACE(seed);
    Simulation life(seed);
    life.run(400);
    ASSERT_FALSE(HasFailure());
    all.swapped_out += life.swap().swapped_out;
    all.swapped_in += life.swap().swapped_in;
    all.damaged += life.swap().damaged;
  }
  EXPECT_GT(all.swapped_out, 1000U);
  EXPECT_GT(all.swapped_in, 100U);
  EXPECT_GT(all.damaged, 10U);
}

/// Sequences come and go under heavy pressure; the leased anchors are computed once and never again.
TEST(BlockTableSimulation, PinnedAnchorsOutliveAnyPressure) {
  BlockPool pool = std::move(BlockPool::create(kGeometry, 9, 5)).value();
  PrefixCache cache(pool, host_page_hasher(pool));
  std::mt19937_64 random(7);
  const core::BlockLayout layout{70};
  const AnchorOdds odds{0.25F, 4.0F};
  std::vector<std::int32_t> preface;
  for (std::int32_t i = 0; i < layout.preface_tokens(); ++i) {
    preface.push_back(i);
  }
  const std::vector<BlockKey> keys = chain_keys(kRoot, layout, odds, preface);
  const AnchorLease lease = cache.lease(keys);
  std::vector<BlockId> anchors;
  for (int round = 0; round < 200; ++round) {
    BlockTable table(cache, kRoot, layout, odds);
    EXPECT_EQ(table.match_prefix(preface), round == 0 ? 0 : layout.preface_tokens());
    std::vector<std::int32_t> rest(preface.begin() + table.size(), preface.end());
    for (int i = 0; i < 300; ++i) {
      rest.push_back(static_cast<std::int32_t>(random() % 1000));
    }
    const std::int64_t from = table.size();
    ASSERT_TRUE(table.append(rest));
    testing::run_kernels(pool, table, from);
    table.seal_filled();
    const std::vector<BlockId> now(table.blocks().begin(), table.blocks().begin() + layout.preface_blocks());
    anchors = round == 0 ? now : anchors;
    ASSERT_EQ(now, anchors);
    EXPECT_EQ(table.pinned_blocks(), layout.preface_blocks());
    EXPECT_EQ(table.reclaimable_blocks(), 5);
    cache.clear();
  }
}

}  // namespace
}  // namespace fieldprint::kv
