#include "scheduler/scheduler.h"

#include <gtest/gtest.h>

#include <vector>

namespace fieldprint::scheduler {
namespace {

constexpr Budgets kRoomy{.step_tokens = 256,
                         .prefill_chunk = 100,
                         .max_batch = 8,
                         .total_blocks = 1000,
                         .pinned_blocks = 0,
                         .available_blocks = 1000};

SequenceView waiting(core::SequenceId id, std::int64_t tokens, core::TenantId tenant = 0) {
  return {.id = id, .arrival = id, .tenant = tenant, .tokens = tokens, .limit_tokens = tokens};
}

SequenceView prefilling(core::SequenceId id, std::int64_t tokens, std::int64_t computed,
                        core::TenantId tenant = 0) {
  SequenceView s = waiting(id, tokens, tenant);
  s.computed = computed;
  s.reclaimable_blocks = s.layout.blocks_for(computed);
  return s;
}

SequenceView decoding(core::SequenceId id, std::int64_t tokens, core::TenantId tenant = 0) {
  return prefilling(id, tokens, tokens - 1, tenant);
}

Decision decide(const std::vector<SequenceView>& waiting, const std::vector<SequenceView>& running,
                const Budgets& budgets, const FairShare& shares = {}) {
  return scheduler::decide(std::span(waiting), std::span(running), budgets, shares);
}

TEST(Scheduler, NothingToDoGivesAnEmptyDecision) { EXPECT_TRUE(decide({}, {}, kRoomy).empty()); }

TEST(Scheduler, DecodesComeFirstThenPrefillChunksUnderTheTokenBudget) {
  const Decision d = decide({waiting(4, 500), waiting(5, 500)},
                            {prefilling(3, 300, 100), decoding(1, 50), decoding(2, 9)}, kRoomy);
  EXPECT_EQ(d.run, (std::vector<scheduler::Run>{{1, 1}, {2, 1}, {3, 100}, {4, 100}, {5, 54}}));
  EXPECT_EQ(d.admit, (std::vector<core::SequenceId>{4, 5}));
  EXPECT_TRUE(d.preempt.empty());
}

TEST(Scheduler, AdmitsInOrderOfArrivalUpToTheBatch) {
  Budgets budgets = kRoomy;
  budgets.max_batch = 2;
  const Decision d = decide({waiting(9, 5), waiting(7, 5), waiting(8, 5)}, {}, budgets);
  EXPECT_EQ(d.admit, (std::vector<core::SequenceId>{7, 8}));
}

TEST(Scheduler, WhatIsNotReadyKeepsItsPlaceAndDoesNotRun) {
  Budgets budgets = kRoomy;
  budgets.max_batch = 2;
  SequenceView held = decoding(1, 50);
  held.ready = false;
  const Decision d = decide({waiting(3, 5)}, {held, decoding(2, 9)}, budgets);
  EXPECT_EQ(d.run, (std::vector<scheduler::Run>{{2, 1}}));
  EXPECT_TRUE(d.admit.empty());
  EXPECT_TRUE(d.preempt.empty());
  EXPECT_TRUE(decide({}, {held}, kRoomy).empty());
}

TEST(Scheduler, WhatIsNotReadyClaimsNoBlockButGivesItsOwnToOthers) {
  Budgets budgets = kRoomy;
  budgets.total_blocks = 6;
  budgets.available_blocks = 0;
  SequenceView held = decoding(2, 66);
  held.ready = false;
  EXPECT_TRUE(decide({}, {held}, budgets).preempt.empty()) << "it would need a block, but not now";
  const Decision d = decide({}, {decoding(1, 66), held}, budgets);
  EXPECT_EQ(d.preempt, (std::vector<core::SequenceId>{2}));
  EXPECT_EQ(d.run, (std::vector<scheduler::Run>{{1, 1}}));
}

TEST(Scheduler, CachedTokensAreNotComputedAgain) {
  SequenceView s = waiting(1, 200);
  s.computed = 1 + 128;
  s.cached_blocks = 3;
  EXPECT_EQ(decide({s}, {}, kRoomy).run, (std::vector<scheduler::Run>{{1, 71}}));
}

TEST(Scheduler, TenantServedLeastGoesFirst) {
  FairShare shares;
  shares.enter(1);
  shares.enter(2);
  shares.charge(1, 1000);
  const Decision d = decide({waiting(1, 300, 1), waiting(2, 300, 1), waiting(3, 300, 2)}, {}, kRoomy, shares);
  EXPECT_EQ(d.admit.front(), 3U);
}

TEST(Scheduler, EqualTenantsTakeTurnsWithinAStep) {
  const Decision d =
      decide({waiting(1, 50, 1), waiting(2, 50, 1), waiting(3, 50, 2), waiting(4, 50, 2)}, {}, kRoomy);
  EXPECT_EQ(d.admit, (std::vector<core::SequenceId>{1, 3, 2, 4}));
}

TEST(Scheduler, PreemptsTheYoungestWhenBlocksRunOut) {
  Budgets budgets = kRoomy;
  budgets.total_blocks = 6;
  budgets.available_blocks = 0;
  // Sequences 1 and 2 have filled their blocks exactly and need another; 3 does not.
  const Decision d = decide({waiting(4, 5)}, {decoding(2, 66), decoding(3, 40), decoding(1, 66)}, budgets);
  EXPECT_EQ(d.preempt, (std::vector<core::SequenceId>{3}));
  EXPECT_EQ(d.run, (std::vector<scheduler::Run>{{1, 1}, {2, 1}}));
  EXPECT_TRUE(d.admit.empty());
}

TEST(Scheduler, SharedBlocksDoNotCountAsFreedByAPreemption) {
  Budgets budgets = kRoomy;
  budgets.total_blocks = 4;
  budgets.available_blocks = 0;
  SequenceView shares_all = decoding(2, 66);
  shares_all.reclaimable_blocks = 0;
  const Decision d = decide({}, {decoding(1, 66), shares_all}, budgets);
  EXPECT_EQ(d.preempt, (std::vector<core::SequenceId>{2}));
  EXPECT_TRUE(d.run.empty()) << "the oldest waits a step until the blocks are seen to be free";
}

TEST(Scheduler, SharedTailNeedsABlockForItsCopy) {
  Budgets budgets = kRoomy;
  budgets.total_blocks = 3;
  budgets.available_blocks = 0;
  SequenceView fork = decoding(1, 30);
  fork.tail_shared = true;
  SequenceView other = decoding(2, 30);
  other.reclaimable_blocks = 1;
  EXPECT_EQ(decide({}, {fork, other}, budgets).preempt, (std::vector<core::SequenceId>{2}));
  fork.tail_shared = false;
  EXPECT_TRUE(decide({}, {fork, other}, budgets).preempt.empty());
}

TEST(Scheduler, ChunkIsCutToTheBlocksThatAreLeft) {
  Budgets budgets = kRoomy;
  budgets.total_blocks = 4;
  budgets.available_blocks = 2;
  // One of the two blocks is kept for the decode that needs it.
  const Decision d = decide({}, {prefilling(1, 170, 65), decoding(2, 66)}, budgets);
  EXPECT_EQ(d.run, (std::vector<scheduler::Run>{{2, 1}, {1, 64}}));
}

TEST(Scheduler, WaitsRatherThanAdmitAPromptThatDoesNotFitWhole) {
  Budgets budgets = kRoomy;
  budgets.total_blocks = 10;
  budgets.available_blocks = 5;
  const std::vector<SequenceView> running = {decoding(1, 30)};
  EXPECT_TRUE(decide({waiting(2, 1 + 5 * 64)}, running, budgets).admit.empty());
  EXPECT_TRUE(decide({waiting(2, 1 + 4 * 64)}, running, budgets).admit.empty()) << "no spare block";
  EXPECT_EQ(decide({waiting(2, 1 + 3 * 64)}, running, budgets).admit.size(), 1U);
  EXPECT_TRUE(decide({waiting(2, 1 + 4 * 64), waiting(3, 2)}, running, budgets).admit.empty())
      << "nobody overtakes";
}

TEST(Scheduler, CachedBlocksOfAnAdmissionAreTakenFromTheAvailableOnes) {
  Budgets budgets = kRoomy;
  budgets.total_blocks = 8;
  budgets.available_blocks = 4;
  SequenceView s = waiting(2, 1 + 4 * 64);
  s.computed = 1 + 2 * 64;
  s.cached_blocks = 3;
  EXPECT_TRUE(decide({s}, {decoding(1, 30)}, budgets).admit.empty());
  s.cached_blocks = 1;
  EXPECT_EQ(decide({s}, {decoding(1, 30)}, budgets).admit.size(), 1U);
}

TEST(Scheduler, SwappedBlocksCountAsComputedButEachNeedsABlock) {
  Budgets budgets = kRoomy;
  budgets.total_blocks = 8;
  budgets.available_blocks = 4;
  SequenceView s = waiting(2, 1 + 4 * 64);
  s.computed = 1 + 2 * 64;
  s.swapped_blocks = 3;
  EXPECT_TRUE(decide({s}, {decoding(1, 30)}, budgets).admit.empty());
  budgets.available_blocks = 6;
  const Decision d = decide({s}, {decoding(1, 30)}, budgets);
  EXPECT_EQ(d.admit.size(), 1U);
  EXPECT_EQ(d.run, (std::vector<scheduler::Run>{{1, 1}, {2, kRoomy.prefill_chunk}}));
}

TEST(Scheduler, BlocksThatRunningPromptsStillNeedAreNotGivenToOthers) {
  Budgets budgets = kRoomy;
  budgets.total_blocks = 20;
  budgets.available_blocks = 12;
  const std::vector<SequenceView> running = {prefilling(1, 1 + 11 * 64, 1 + 64)};
  EXPECT_TRUE(decide({waiting(2, 100)}, running, budgets).admit.empty());
  budgets.available_blocks = 14;
  EXPECT_EQ(decide({waiting(2, 100)}, running, budgets).admit.size(), 1U);
}

TEST(Scheduler, BlocksOfOneAdmissionAreNotGivenToTheNext) {
  Budgets budgets = kRoomy;
  budgets.total_blocks = 8;
  budgets.available_blocks = 8;
  SequenceView first = waiting(1, 1 + 64 * 5 + 1);
  first.computed = 1 + 64 * 5;
  first.cached_blocks = 6;
  EXPECT_EQ(decide({first, waiting(2, 1)}, {}, budgets).admit, std::vector<core::SequenceId>{1});
  first.cached_blocks = 5;
  EXPECT_EQ(decide({first, waiting(2, 1)}, {}, budgets).admit, (std::vector<core::SequenceId>{1, 2}));
}

TEST(Scheduler, NobodyIsAdmittedInAStepThatPreempts) {
  Budgets budgets = kRoomy;
  budgets.total_blocks = 14;
  budgets.available_blocks = 0;
  const Decision d = decide({waiting(3, 5)}, {decoding(1, 66), decoding(2, 700)}, budgets);
  EXPECT_EQ(d.preempt, std::vector<core::SequenceId>{2});
  EXPECT_TRUE(d.admit.empty());
}

TEST(Scheduler, ReportsASequenceThatCannotFitAloneWithTheNumbers) {
  Budgets budgets = kRoomy;
  budgets.total_blocks = 10;
  budgets.pinned_blocks = 3;
  budgets.available_blocks = 7;
  SequenceView s = waiting(1, 10);
  s.layout.anchor_tokens = 100;
  s.pinned_blocks = 3;
  s.limit_tokens = 101 + 7 * 64;
  EXPECT_EQ(decide({s}, {}, budgets).admit.size(), 1U);
  s.limit_tokens += 1;
  const Decision d = decide({s, waiting(2, 10)}, {}, budgets);
  EXPECT_EQ(d.impossible, (std::vector<Impossible>{{1, 8, 7}}));
  EXPECT_EQ(d.admit, (std::vector<core::SequenceId>{2})) << "it holds nobody up";
  EXPECT_NE(d.impossible[0].message().find("needs 8 KV blocks"), std::string::npos);
  EXPECT_NE(d.impossible[0].message().find("only 7"), std::string::npos);
}

TEST(Scheduler, SameInputsInAnyOrderGiveTheSameDecision) {
  const std::vector<SequenceView> running = {decoding(1, 50), prefilling(2, 300, 10, 1), decoding(3, 70, 2)};
  const std::vector<SequenceView> queue = {waiting(4, 30), waiting(5, 30, 1), waiting(6, 30, 2)};
  const Decision a = decide(queue, running, kRoomy);
  const Decision b = decide({queue.rbegin(), queue.rend()}, {running.rbegin(), running.rend()}, kRoomy);
  EXPECT_EQ(a.run, b.run);
  EXPECT_EQ(a.admit, b.admit);
}

}  // namespace
}  // namespace fieldprint::scheduler
