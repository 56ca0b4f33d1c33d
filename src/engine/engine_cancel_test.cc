#include <gtest/gtest.h>

#include "engine/engine_testing.h"

namespace fieldprint::engine {
namespace {

using core::SequenceId;
using testing::expect_same;
using testing::request;
using testing::Served;

TEST(Engine, ACancelledRequestIsNotHeardOfAgainAndChangesNoOther) {
  Served alone({.kv_blocks = 40});
  const core::Answer expected = alone.answer(request(30, 20, 7));

  Served served({.kv_blocks = 40, .max_batch = 2});
  const SequenceId kept = served.submit(request(30, 20, 7));
  const SequenceId running = served.submit(request(70, 200, 8));
  const SequenceId waiting = served.submit(request(70, 200, 9));
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(served->step());
  served->cancel(running);
  served->cancel(waiting);
  served->cancel(12345);
  const std::string streamed = served.streamed[running];
  served.finish();
  EXPECT_EQ(served.order, std::vector<SequenceId>{kept});
  EXPECT_TRUE(served.errors.empty());
  EXPECT_EQ(served.streamed[running], streamed);
  EXPECT_EQ(served.streamed[waiting], "");
  expect_same(served.answers.at(kept), expected);
}

TEST(Engine, ACancelledRequestGivesItsBlocksBack) {
  Served served({.kv_blocks = 9, .prefix_cache = false});
  const SequenceId big = served.submit(request(400, 50));
  ASSERT_TRUE(served->step());
  served->cancel(big);
  EXPECT_FALSE(served->step());
  const core::Answer answer = served.answer(request(400, 50, 2));
  EXPECT_EQ(answer.output.size(), 50U);
  EXPECT_EQ(answer.blocks.size(), 9U);
}

/// What a server does when the stream it writes to has gone.
TEST(Engine, AnEventMayCancelItsOwnRequestAndAnyOther) {
  Served alone({.kv_blocks = 60});
  const core::Answer expected = alone.answer(request(30, 20, 7));

  Served served({.kv_blocks = 60, .max_batch = 4});
  const SequenceId first = served.submit(request(20, 200, 8));
  const SequenceId other = served.submit(request(20, 200, 9));
  const SequenceId waiting = served.submit(request(20, 200, 10));
  const SequenceId kept = served.submit(request(30, 20, 7));
  served.on_text = [&](SequenceId id) {
    if (id != first) return;
    for (const SequenceId gone : {first, other, waiting, first}) served->cancel(gone);
  };
  served.finish();
  EXPECT_EQ(served.order, std::vector<SequenceId>{kept});
  EXPECT_TRUE(served.errors.empty());
  expect_same(served.answers.at(kept), expected);
  EXPECT_EQ(served->stats().cache.pinned_blocks, 0);
}

}  // namespace
}  // namespace fieldprint::engine
