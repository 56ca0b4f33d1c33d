#include "engine/chain.h"

#include <gtest/gtest.h>

namespace fieldprint::engine {
namespace {

// A commit's own tokens against all before it and its own: what computing it again costs.
TEST(Chain, TheShareOfACommitIsItsTokensOfAllThatMustBeComputedForIt) {
  core::Request request;
  request.prompt.assign(100, 7);
  commit::Origin origin;
  origin.canon_version = "canon-1";
  Chain chain(origin, request);
  ASSERT_TRUE(
      chain.next(SealedPrompt{{{core::Segment::kSink, 0, 1, {}}, {core::Segment::kContext, 0, 64, {}}}}));
  EXPECT_EQ(chain.last_share(), 1.0);
  ASSERT_TRUE(
      chain.next(SealedSegment{std::vector<std::int32_t>(30, 5), {core::Segment::kContext, 1, 64, {}}}));
  EXPECT_EQ(chain.last_share(), 30.0 / 130);
  EXPECT_EQ(chain.history().outputs, 30U);
  ASSERT_TRUE(
      chain.next(SealedSegment{std::vector<std::int32_t>(64, 6), {core::Segment::kContext, 2, 64, {}}}));
  EXPECT_EQ(chain.last_share(), 64.0 / 194);
}

}  // namespace
}  // namespace fieldprint::engine
