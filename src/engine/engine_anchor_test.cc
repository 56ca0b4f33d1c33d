#include <gtest/gtest.h>

#include "engine/engine_testing.h"

namespace fieldprint::engine {
namespace {

using testing::anchored;
using testing::expect_same;
using testing::request;
using testing::Served;

TEST(Engine, AnchorsOfSeveralRequestsAreComputedOnce) {
  for (const bool prefix_cache : {false, true}) {
    Served served({.kv_blocks = 60, .prefix_cache = prefix_cache});
    for (std::uint64_t seed = 0; seed < 4; ++seed) served.submit(anchored(100, 10, 1, seed));
    served.finish();
    EXPECT_EQ(served->stats().computed_tokens, 101 + 4 * 10);
    EXPECT_EQ(served->stats().cache.pinned_blocks, 3);
    std::int64_t cached = 0;
    for (const auto& [id, answer] : served.answers) {
      cached += answer.cached_tokens;
      EXPECT_EQ(answer.anchor_mass.size(), 2U);
      EXPECT_EQ(answer.blocks.size(), 4U);
    }
    EXPECT_EQ(cached, 3 * 101);
  }
}

TEST(Engine, PinnedAnchorsSurviveEviction) {
  Served served({.kv_blocks = 14});
  const core::Answer first = served.answer(anchored(100, 10, 4, 5));
  for (std::uint64_t seed = 0; seed < 6; ++seed) served.answer(request(400, 1, seed));
  ASSERT_GT(served->stats().cache.evictions, 0U);
  const std::int64_t before = served->stats().computed_tokens;
  const core::Answer again = served.answer(anchored(100, 10, 4, 5));
  expect_same(again, first);
  EXPECT_EQ(again.cached_tokens, 101);
  EXPECT_EQ(served->stats().computed_tokens - before,
            10 + static_cast<std::int64_t>(again.output.size()) - 1);
}

TEST(Engine, AnchorsThatNobodyUsesMakeRoomForOthers) {
  Served served({.kv_blocks = 8});
  const core::Answer first = served.answer(anchored(100, 10, 4, 5));
  ASSERT_EQ(served->stats().cache.pinned_blocks, 3);
  const core::Answer big = served.answer(request(440, 4, 2));
  EXPECT_EQ(big.output.size(), 4U);
  EXPECT_EQ(served->stats().cache.pinned_blocks, 0);
  expect_same(served.answer(anchored(100, 10, 4, 5)), first);
}

TEST(Engine, AnchorsInUseMakeNoRoom) {
  Served served({.kv_blocks = 8});
  const core::SequenceId anchored_one = served.submit(anchored(100, 10, 30, 5));
  ASSERT_TRUE(served->step());
  const core::SequenceId big = served.submit(request(440, 4, 2));
  served.finish();
  EXPECT_TRUE(served.answers.contains(anchored_one));
  EXPECT_EQ(served.answers.contains(big) ? 0U : 1U, served.errors.size());
}

}  // namespace
}  // namespace fieldprint::engine
