#include <gtest/gtest.h>

#include <algorithm>

#include "engine/committer_testing.h"

namespace fieldprint::engine {
namespace {

using core::SequenceId;
using testing::anchored_endless;
using testing::endless;
using testing::expect_same;
using testing::Recorded;
using testing::Request;
using testing::Served;
using testing::verdicts_of;

/// Without the scrubber, which comes by when it has time: tests say when it does.
const Options kQuiet{.kv_blocks = 60, .scrub_share = 0};

/// A byte of a key in the block's first page.
constexpr std::int64_t kByte = 7;

/// Damage that shows in all that is computed from it.
void spoil(Recorded& it, SequenceId id) {
  for (std::int64_t byte = 0; byte < 512; ++byte) it.probe().damage(id, 1, byte, 0x40);
}

TEST(Pages, DamageFoundBeforeAnythingDependedOnItCostsNothingButTime) {
  const Request asked = endless(100, 200);
  const core::Answer expected = Served(kQuiet).answer(asked);
  Recorded it(kQuiet);
  const SequenceId id = it.served.submit(asked);
  it.generate(id, 120);
  it.probe().scrub_all();
  it.probe().damage(id, 1, kByte);
  it.probe().scrub_all();
  EXPECT_EQ(it.served->stats().damaged_blocks, 1);
  it.served.finish();
  ASSERT_TRUE(it.served.answers.contains(id)) << it.served.errors.at(id).message;
  expect_same(it.served.answers.at(id), expected);
  EXPECT_TRUE(it.served.validated.contains(id));
}

TEST(Pages, TokensSinceTheLastCommitAreComputedAgainAndTheAnswerIsTheSame) {
  for (const bool anchors : {false, true}) {
    Request asked = anchors ? anchored_endless(70, 40, 200, 3) : endless(100, 200);
    asked.sampling.repetition_penalty = 1.2F;
    asked.logprobs = 2;
    const core::Answer expected = Served(kQuiet).answer(asked);
    Recorded it(kQuiet);
    const SequenceId id = it.served.submit(asked);
    it.generate(id, 120);
    it.probe().scrub_all();
    const std::int32_t sealed = it.probe().trail(id).sealed;
    it.probe().damage(id, 1, kByte);
    it.generate(id, 125);
    ASSERT_EQ(it.probe().trail(id).sealed, sealed) << "the test is about an open block";
    it.probe().scrub_all();
    EXPECT_TRUE(it.probe().recomputing(id));
    it.served.finish();
    // A token that the damage changed must stop it; these it did not.
    if (it.served.errors.contains(id)) {
      EXPECT_EQ(it.served.errors.at(id).kind, ErrorKind::kRefuted);
      continue;
    }
    expect_same(it.served.answers.at(id), expected);
    EXPECT_TRUE(it.served.validated.contains(id));
  }
}

TEST(Pages, ACommitThatDependsOnDamageIsRefutedAndTheTrajectoryStopsBeforeIt) {
  Recorded it(kQuiet);
  const SequenceId id = it.served.submit(endless(100, 300));
  const SequenceId other = it.served.submit(endless(90, 100, 5));
  it.generate(id, 60);
  it.probe().scrub_all();
  const std::int32_t good = it.probe().trail(id).sealed;
  spoil(it, id);
  it.generate(id, 200);
  ASSERT_GT(it.probe().trail(id).sealed, good);
  it.probe().scrub_all();
  it.served.finish();
  ASSERT_TRUE(it.served.errors.contains(id));
  EXPECT_EQ(it.served.errors.at(id).kind, ErrorKind::kRefuted);
  EXPECT_NE(it.served.errors.at(id).message.find("damaged page"), std::string::npos);
  EXPECT_TRUE(it.served.validated.contains(other)) << "it shared no block";
  std::size_t refused = 0;
  std::size_t validated = 0;
  it.committer.reset();
  for (const commit::VerdictRecord& verdict : verdicts_of(*it.log)) {
    (verdict.good ? validated : refused) += verdict.commits.size();
  }
  EXPECT_GT(refused, 0U);
  EXPECT_EQ(validated, static_cast<std::size_t>(good) + 1 + 2) << "its good commits and the other's three";
}

TEST(Pages, DamageToAnAnchorsBlockIsComputedAgainForAllThatShareIt) {
  std::vector<core::Answer> expected;
  Served plain(kQuiet);
  for (std::uint64_t seed = 1; seed < 4; ++seed) {
    expected.push_back(plain.answer(anchored_endless(70, 20, 100, seed)));
  }
  Recorded it(kQuiet);
  std::vector<SequenceId> ids;
  for (std::uint64_t seed = 1; seed < 4; ++seed) {
    ids.push_back(it.served.submit(anchored_endless(70, 20, 100, seed)));
  }
  it.generate(ids.back(), 50);
  it.probe().scrub_all();
  it.probe().damage(ids[0], 1, kByte);
  it.probe().scrub_all();
  EXPECT_EQ(it.served->stats().damaged_blocks, 1);
  it.served.finish();
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ASSERT_TRUE(it.served.answers.contains(ids[i]));
    expect_same(it.served.answers.at(ids[i]), expected[i]);
  }
}

TEST(Pages, DamageUnderAFinishedAnswerIsComputedAgainOrRefuted) {
  const Request asked = endless(100, 100);
  const core::Answer expected = Served(kQuiet).answer(asked);
  for (const bool before_the_end : {false, true}) {
    Recorded it(kQuiet);
    it.commits.holding = true;
    const SequenceId id = it.served.submit(asked);
    it.generate(id, 90);
    if (before_the_end) spoil(it, id);
    it.generate(id, 100);
    if (!before_the_end) spoil(it, id);
    it.probe().scrub_all();
    EXPECT_EQ(it.served->stats().damaged_blocks, 1);
    it.commits.let_go();
    it.served.finish();
    EXPECT_EQ(it.served.validated.contains(id), !before_the_end);
    EXPECT_EQ(it.served.errors.contains(id), before_the_end);
    if (!before_the_end) expect_same(it.served.answers.at(id), expected);
  }
}

TEST(Pages, DamageWhileTokensAreComputedAgainStartsThatOverAndTheAnswerIsTheSame) {
  const Request asked = anchored_endless(70, 40, 200, 3);
  const core::Answer expected = Served(kQuiet).answer(asked);
  for (const int steps : {4, 9, 16, 30}) {
    Recorded it({.kv_blocks = 60, .prefill_chunk = 16, .scrub_share = 0});
    const SequenceId id = it.served.submit(asked);
    it.generate(id, 130);
    it.probe().scrub_all();
    ASSERT_GE(it.probe().trail(id).checked, 3) << "the test is about several generated blocks";
    for (int times = 1; times <= 3; ++times) {
      it.probe().damage(id, 1, kByte);
      it.probe().scrub_all();
      ASSERT_EQ(it.served->stats().damaged_blocks, times);
      ASSERT_TRUE(it.probe().recomputing(id));
      for (int step = 0; step < steps; ++step) ASSERT_TRUE(it.served->step());
      ASSERT_TRUE(it.probe().recomputing(id)) << "the test is about what is half done";
    }
    it.served.finish();
    ASSERT_TRUE(it.served.answers.contains(id)) << it.served.errors.at(id).message;
    expect_same(it.served.answers.at(id), expected);
    EXPECT_TRUE(it.served.validated.contains(id));
  }
}

TEST(Pages, ADamagedBlockThatNobodyHoldsIsDropped) {
  Recorded it(kQuiet);
  const Request asked = endless(200, 70);
  const core::Answer first = it.served.answer(asked);
  ASSERT_GT(it.served->stats().cache.cached_blocks, 2);
  it.probe().damage_cached();
  it.probe().scrub_all();
  EXPECT_EQ(it.served->stats().damaged_blocks, 1);
  expect_same(it.served.answer(asked), first);
}

/// What an answer left in the cache is altered, and the same is asked again: of 64 bytes of the sink's block,
/// some change a later page and no token, some only logprobs.
TEST(Pages, ADamagedPageThatIsTakenUpAgainStopsNoProcessAndNoWrongNumberIsValidated) {
  const Request asked = endless(100, 200);
  const core::Answer expected = Served(kQuiet).answer(asked);
  int logprobs = 0;
  int mended = 0;
  for (std::int64_t byte = 0; byte < 64; ++byte) {
    Recorded it(kQuiet);
    it.served.answer(asked);
    it.probe().damage_cached(byte);
    Request again = asked;
    again.hold_text = byte % 4 == 3;
    const SequenceId id = it.served.submit(again);
    it.served.finish();
    EXPECT_GT(it.served->stats().damaged_blocks, 0);
    ASSERT_NE(it.served.errors.contains(id), it.served.validated.contains(id));
    if (it.served.errors.contains(id)) {
      const Error& error = it.served.errors.at(id);
      EXPECT_EQ(error.kind, ErrorKind::kRefuted);
      EXPECT_EQ(it.served.answers.contains(id), !again.hold_text);
      logprobs += error.message.find("logprobs are other") != std::string::npos ? 1 : 0;
    } else {
      expect_same(it.served.answers.at(id), expected);
      ++mended;
    }
    expect_same(it.served.answer(asked), expected);
    EXPECT_EQ(it.served.validated.size(), it.served.errors.contains(id) ? 2U : 3U);
  }
  EXPECT_GT(logprobs, 0);
  EXPECT_GT(mended, 0);
}

/// Altered before it was hashed, it has the digest of what it became. Only computing it once more tells.
TEST(Pages, APageAlteredBeforeItWasHashedIsDroppedWhenItIsComputedAgainOtherwise) {
  const Request asked = endless(100, 200);
  const Request other = endless(90, 120, 5);
  const core::Answer expected = Served(kQuiet).answer(asked);
  const core::Answer others = Served(kQuiet).answer(other);
  int differed = 0;
  for (std::int64_t byte = 0; byte < 32; ++byte) {
    Recorded it(kQuiet);
    const SequenceId first = it.served.submit(asked);
    it.generate(first, 60);
    it.probe().damage(first, it.probe().full_blocks(first), byte);
    it.served.finish();
    // Others in the same steps go on with tokens of their own.
    const SequenceId before = it.served.submit(other);
    const SequenceId second = it.served.submit(asked);
    const SequenceId after = it.served.submit(other);
    it.served.finish();
    differed += it.served->stats().damaged_blocks == 2 ? 1 : 0;
    ASSERT_TRUE(it.served.validated.contains(second)) << it.served.errors.at(second).message;
    expect_same(it.served.answers.at(second), expected);
    for (const SequenceId id : {before, after}) {
      ASSERT_TRUE(it.served.validated.contains(id));
      expect_same(it.served.answers.at(id), others);
    }
  }
  EXPECT_GT(differed, 0);
}

TEST(Pages, TheScrubberFindsDamageByItself) {
  Recorded it({.kv_blocks = 60, .scrub_share = 1});
  const SequenceId id = it.served.submit(endless(100, 300));
  it.generate(id, 70);
  it.probe().damage(id, 1, kByte);
  for (int i = 0; i < 300 && it.served->stats().damaged_blocks == 0; ++i) it.served->step();
  EXPECT_EQ(it.served->stats().damaged_blocks, 1);
  it.served.finish();
  EXPECT_TRUE(it.served.validated.contains(id) || it.served.errors.contains(id));
}

TEST(Pages, AFinishedAnswerIsValidatedWhileOthersKeepTheEngineBusy) {
  Recorded it({.kv_blocks = 4000, .max_batch = 2, .scrub_share = 0});
  const SequenceId first = it.served.submit(endless(30, 80));
  std::uint64_t seed = 1;
  std::size_t submitted = 1;
  const Clock::time_point start = Clock::now();
  while (!it.served.validated.contains(first)) {
    // Two run and one waits, so that the engine is never idle; there is room for all.
    for (; submitted < it.served.answers.size() + 3; ++submitted) it.served.submit(endless(30, 300, ++seed));
    ASSERT_TRUE(it.served->step());
    ASSERT_LT(Clock::now() - start, std::chrono::seconds(5));
  }
  EXPECT_LT(it.served.validated.size(), it.served.answers.size()) << "answers are checked at their end";
  EXPECT_GT(submitted, it.served.answers.size());
  it.served.finish();
  EXPECT_EQ(it.served.validated.size(), submitted);
}

TEST(Pages, AnEngineWithoutCommitsComputesDamagedPagesAgainToo) {
  const Request asked = anchored_endless(70, 40, 150, 3);
  const core::Answer expected = Served(kQuiet).answer(asked);
  Served served(kQuiet);
  const SequenceId id = served.submit(asked);
  EngineProbe probe(*served);
  while (probe.outputs(id) < 100) ASSERT_TRUE(served->step());
  probe.damage(id, 2, kByte);
  probe.scrub_all();
  EXPECT_TRUE(probe.recomputing(id));
  served.finish();
  ASSERT_TRUE(served.answers.contains(id));
  expect_same(served.answers.at(id), expected);
}

TEST(Pages, PreemptionAndDamageTogetherChangeNoAnswer) {
  std::vector<Request> requests;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    requests.push_back(seed % 2 == 0 ? endless(62, 150, seed) : anchored_endless(70, 60, 150, seed));
  }
  Served plain({.kv_blocks = 60, .scrub_share = 0});
  Recorded it({.kv_blocks = 14, .max_batch = 5, .scrub_share = 0});
  for (const Request& each : requests) {
    plain.submit(each);
    it.served.submit(each);
  }
  plain.finish();
  for (int step = 0; it.served->step(); ++step) {
    if (step % 40 != 20) continue;
    it.probe().scrub_all();
    it.probe().damage_any(static_cast<std::uint64_t>(step), kByte);
    it.probe().scrub_all();
  }
  EXPECT_GT(it.served->stats().preemptions, 0);
  EXPECT_GT(it.served->stats().damaged_blocks, 2);
  for (const auto& [id, answer] : plain.answers) {
    ASSERT_TRUE(it.served.answers.contains(id));
    expect_same(it.served.answers.at(id), answer);
    EXPECT_TRUE(it.served.validated.contains(id));
  }
}

}  // namespace
}  // namespace fieldprint::engine
