#include "commit/protocol.h"

#include <gtest/gtest.h>

namespace fieldprint::commit {
namespace {

using Commit = Protocol::Commit;
using Release = Protocol::Release;

constexpr Digest kPolicy{1};
constexpr Digest kMemory{2};

/// Seals a commit and makes it durable.
Commit durable(Protocol& protocol, Protocol::Trajectory trajectory) {
  const Commit commit = protocol.seal(trajectory);
  protocol.acknowledge(commit);
  return commit;
}

Commit validated(Protocol& protocol, Protocol::Trajectory trajectory) {
  const Commit commit = durable(protocol, trajectory);
  protocol.validate(commit);
  return commit;
}

TEST(Protocol, ACommitIsSealedThenDurableThenValidated) {
  Protocol protocol(2);
  ASSERT_TRUE(protocol.open(7, {kPolicy}));
  const Commit commit = protocol.seal(7);
  EXPECT_EQ(commit, (Commit{7, 0}));
  EXPECT_EQ(protocol.state(commit), CommitState::kSealed);
  EXPECT_EQ(protocol.to_validate(7), std::nullopt);
  protocol.acknowledge(commit);
  EXPECT_EQ(protocol.state(commit), CommitState::kDurable);
  EXPECT_EQ(protocol.to_validate(7), commit);
  protocol.validate(commit);
  EXPECT_EQ(protocol.state(commit), CommitState::kValidated);
  EXPECT_EQ(protocol.to_validate(7), std::nullopt);
  EXPECT_EQ(protocol.validated(7), 1);
  EXPECT_EQ(protocol.sealed(7), 1);
  EXPECT_EQ(protocol.seal(7), (Commit{7, 1}));
}

TEST(Protocol, ATrajectoryRunsAheadOfValidationSoFarAndNoFurther) {
  for (const std::int32_t run_ahead : {1, 2, 5}) {
    Protocol protocol(run_ahead);
    ASSERT_TRUE(protocol.open(1, {}));
    for (std::int32_t i = 0; i < run_ahead; ++i) {
      ASSERT_TRUE(protocol.may_run(1)) << i << " of " << run_ahead;
      durable(protocol, 1);
    }
    EXPECT_FALSE(protocol.may_run(1)) << "durable is not validated";
    EXPECT_FALSE(protocol.stopped(1));
    protocol.validate({1, 0});
    EXPECT_TRUE(protocol.may_run(1));
    protocol.seal(1);
    EXPECT_FALSE(protocol.may_run(1));
  }
}

TEST(Protocol, TrajectoriesDoNotWaitForEachOther) {
  Protocol protocol(1);
  ASSERT_TRUE(protocol.open(1, {}));
  ASSERT_TRUE(protocol.open(2, {}));
  protocol.seal(1);
  EXPECT_FALSE(protocol.may_run(1));
  EXPECT_TRUE(protocol.may_run(2));
  protocol.refute({1, 0}, "bad");
  EXPECT_TRUE(protocol.stopped(1));
  EXPECT_FALSE(protocol.stopped(2));
  EXPECT_EQ(protocol.reason(2), "");
}

TEST(Protocol, WhatIsRefutedTakesAllAfterItAlongAndNothingBefore) {
  Protocol protocol(4);
  ASSERT_TRUE(protocol.open(1, {}));
  for (int i = 0; i < 2; ++i) durable(protocol, 1);
  for (int i = 0; i < 2; ++i) protocol.seal(1);
  protocol.refute({1, 1}, "a page differs");
  EXPECT_EQ(protocol.state({1, 0}), CommitState::kDurable);
  for (std::int32_t i = 1; i < 4; ++i) EXPECT_EQ(protocol.state({1, i}), CommitState::kRefuted) << i;
  EXPECT_TRUE(protocol.stopped(1));
  EXPECT_FALSE(protocol.may_run(1));
  EXPECT_EQ(protocol.reason(1), "a page differs");
  EXPECT_EQ(protocol.to_validate(1), (Commit{1, 0}));
  protocol.validate({1, 0});
  EXPECT_EQ(protocol.validated(1), 1);
  EXPECT_EQ(protocol.to_validate(1), std::nullopt);
  EXPECT_FALSE(protocol.may_run(1)) << "a stopped trajectory does not go on, however little is unvalidated";
}

TEST(Protocol, AnEarlierRefutationWidensALaterOneAndTheFirstReasonStays) {
  Protocol protocol(4);
  ASSERT_TRUE(protocol.open(1, {kPolicy}));
  for (int i = 0; i < 3; ++i) durable(protocol, 1);
  protocol.refute({1, 2}, "first");
  protocol.refute({1, 1}, "second");
  protocol.refute({1, 2}, "again");
  protocol.revoke(kPolicy, "third");
  EXPECT_EQ(protocol.reason(1), "first");
  for (std::int32_t i = 0; i < 3; ++i) EXPECT_EQ(protocol.state({1, i}), CommitState::kRefuted) << i;
}

TEST(Protocol, NothingChangesForARefutedCommit) {
  Protocol protocol(3);
  ASSERT_TRUE(protocol.open(1, {}));
  for (int i = 0; i < 3; ++i) protocol.seal(1);
  protocol.acknowledge({1, 0});
  protocol.refute({1, 1}, "bad");
  protocol.acknowledge({1, 1});
  protocol.acknowledge({1, 2});
  protocol.validate({1, 2});
  protocol.refute({1, 2}, "worse");
  EXPECT_EQ(protocol.state({1, 1}), CommitState::kRefuted);
  EXPECT_EQ(protocol.state({1, 2}), CommitState::kRefuted);
  EXPECT_EQ(protocol.validated(1), 0);
  EXPECT_EQ(protocol.to_validate(1), (Commit{1, 0}));
}

TEST(Protocol, ARevokedAnchorRefutesWhatIsNotValidatedAndStopsAllUnderIt) {
  Protocol protocol(3);
  ASSERT_TRUE(protocol.open(1, {kMemory, kPolicy}));
  ASSERT_TRUE(protocol.open(2, {kPolicy}));
  ASSERT_TRUE(protocol.open(3, {kMemory}));
  for (const Protocol::Trajectory t : {1, 2, 3}) {
    validated(protocol, t);
    durable(protocol, t);
    protocol.seal(t);
  }
  protocol.revoke(kPolicy, "poisoned");
  EXPECT_TRUE(protocol.revoked(kPolicy));
  EXPECT_FALSE(protocol.revoked(kMemory));
  for (const Protocol::Trajectory t : {1, 2}) {
    EXPECT_TRUE(protocol.stopped(t));
    EXPECT_EQ(protocol.reason(t), "poisoned");
    EXPECT_EQ(protocol.state({t, 0}), CommitState::kValidated);
    EXPECT_EQ(protocol.state({t, 1}), CommitState::kRefuted);
    EXPECT_EQ(protocol.state({t, 2}), CommitState::kRefuted);
    protocol.validate({t, 1});
    EXPECT_EQ(protocol.validated(t), 1) << "the revocation came first";
    EXPECT_EQ(protocol.to_validate(t), std::nullopt);
  }
  EXPECT_FALSE(protocol.stopped(3));
  EXPECT_EQ(protocol.state({3, 1}), CommitState::kDurable);
  EXPECT_FALSE(protocol.open(4, {kMemory, kPolicy}));
  EXPECT_FALSE(protocol.known(4));
  EXPECT_TRUE(protocol.open(4, {kMemory}));
}

TEST(Protocol, ATrajectoryIsStoppedByARevocationWithNothingToRefute) {
  Protocol protocol(1);
  ASSERT_TRUE(protocol.open(1, {kPolicy}));
  protocol.revoke(kPolicy, "poisoned");
  EXPECT_TRUE(protocol.stopped(1));
  EXPECT_FALSE(protocol.may_run(1));
  EXPECT_EQ(protocol.take(protocol.request(1)), Release::kWithheld);
}

TEST(Protocol, ASuspendedAnchorEndsAllUnderItAndNothingThatOpensLater) {
  Protocol protocol(3);
  ASSERT_TRUE(protocol.open(1, {kMemory, kPolicy}));
  ASSERT_TRUE(protocol.open(2, {kMemory}));
  for (const Protocol::Trajectory t : {1, 2}) {
    validated(protocol, t);
    durable(protocol, t);
  }
  const auto effect = protocol.request(1);
  protocol.suspend(kPolicy, "expired");
  EXPECT_TRUE(protocol.stopped(1));
  EXPECT_EQ(protocol.reason(1), "expired");
  EXPECT_EQ(protocol.state({1, 0}), CommitState::kValidated);
  EXPECT_EQ(protocol.state({1, 1}), CommitState::kRefuted);
  protocol.validate({1, 1});
  EXPECT_EQ(protocol.validated(1), 1);
  EXPECT_EQ(protocol.take(effect), Release::kWithheld);
  EXPECT_FALSE(protocol.stopped(2));
  EXPECT_FALSE(protocol.revoked(kPolicy));
  ASSERT_TRUE(protocol.open(3, {kPolicy}));
  EXPECT_TRUE(protocol.may_run(3));
  // Again, and then for good.
  protocol.suspend(kPolicy, "the ledger cannot be read");
  EXPECT_EQ(protocol.reason(1), "expired");
  EXPECT_EQ(protocol.reason(3), "the ledger cannot be read");
  protocol.revoke(kPolicy, "poisoned");
  EXPECT_FALSE(protocol.open(4, {kPolicy}));
}

TEST(Protocol, AnEffectLeavesWhenAllThatWasSealedAtItsRequestIsValidated) {
  Protocol protocol(4);
  ASSERT_TRUE(protocol.open(1, {kPolicy}));
  const auto before_any = protocol.request(1);
  EXPECT_EQ(protocol.take(before_any), Release::kReleased);
  protocol.seal(1);
  protocol.seal(1);
  const auto effect = protocol.request(1);
  protocol.seal(1);
  EXPECT_EQ(protocol.take(effect), Release::kPending);
  for (std::int32_t i = 0; i < 3; ++i) protocol.acknowledge({1, i});
  EXPECT_EQ(protocol.take(effect), Release::kPending) << "durable is not validated";
  protocol.validate({1, 0});
  EXPECT_EQ(protocol.take(effect), Release::kPending);
  protocol.validate({1, 1});
  EXPECT_EQ(protocol.take(effect), Release::kReleased) << "the third commit is none of its causes";
}

TEST(Protocol, ARefutationWithholdsTheEffectsThatDependOnIt) {
  Protocol protocol(4);
  ASSERT_TRUE(protocol.open(1, {}));
  durable(protocol, 1);
  const auto early = protocol.request(1);
  durable(protocol, 1);
  const auto late = protocol.request(1);
  protocol.refute({1, 1}, "bad");
  EXPECT_EQ(protocol.take(late), Release::kWithheld);
  EXPECT_EQ(protocol.take(early), Release::kPending);
  EXPECT_EQ(protocol.take(protocol.request(1)), Release::kWithheld);
  protocol.validate({1, 0});
  EXPECT_EQ(protocol.take(early), Release::kReleased);
}

TEST(Protocol, ARevocationWithholdsEvenWhatCouldHaveLeftAlready) {
  Protocol protocol(2);
  ASSERT_TRUE(protocol.open(1, {kPolicy}));
  validated(protocol, 1);
  const auto effect = protocol.request(1);
  protocol.revoke(kPolicy, "poisoned");
  EXPECT_EQ(protocol.take(effect), Release::kWithheld);
}

TEST(Protocol, AClosedTrajectoryIsForgottenWhenItsCommitsAreSettledAndItsEffectsTaken) {
  Protocol protocol(2);
  ASSERT_TRUE(protocol.open(1, {}));
  protocol.close(1);
  EXPECT_FALSE(protocol.known(1)) << "nothing of it was pending";

  ASSERT_TRUE(protocol.open(2, {}));
  durable(protocol, 2);
  const auto effect = protocol.request(2);
  protocol.close(2);
  EXPECT_TRUE(protocol.known(2));
  EXPECT_FALSE(protocol.may_run(2));
  EXPECT_EQ(protocol.to_validate(2), (Commit{2, 0})) << "validation goes on";
  protocol.validate({2, 0});
  EXPECT_TRUE(protocol.known(2)) << "the effect was not asked for yet";
  EXPECT_EQ(protocol.take(effect), Release::kReleased);
  EXPECT_FALSE(protocol.known(2));

  ASSERT_TRUE(protocol.open(3, {}));
  protocol.seal(3);
  protocol.close(3);
  protocol.acknowledge({3, 0});
  EXPECT_TRUE(protocol.known(3));
  protocol.validate({3, 0});
  EXPECT_FALSE(protocol.known(3));
}

TEST(Protocol, WhatArrivesLateForAForgottenTrajectoryChangesNothing) {
  Protocol protocol(3);
  ASSERT_TRUE(protocol.open(1, {kPolicy}));
  validated(protocol, 1);
  durable(protocol, 1);
  protocol.seal(1);
  protocol.close(1);
  protocol.revoke(kPolicy, "poisoned");
  EXPECT_FALSE(protocol.known(1));
  protocol.acknowledge({1, 2});
  protocol.validate({1, 1});
  protocol.refute({1, 1}, "bad");
  EXPECT_FALSE(protocol.known(1));
}

TEST(Protocol, TheReasonIsThereUntilTheLastEffectIsTaken) {
  Protocol protocol(2);
  ASSERT_TRUE(protocol.open(1, {kPolicy}));
  durable(protocol, 1);
  const auto effect = protocol.request(1);
  protocol.close(1);
  protocol.revoke(kPolicy, "poisoned");
  EXPECT_EQ(protocol.reason(1), "poisoned");
  EXPECT_EQ(protocol.take(effect), Release::kWithheld);
  EXPECT_FALSE(protocol.known(1));
}

TEST(ProtocolDeathTest, TransitionsOutOfOrderAreBrokenInvariants) {
  Protocol protocol(2);
  ASSERT_TRUE(protocol.open(1, {}));
  ASSERT_TRUE(protocol.open(2, {}));
  protocol.seal(1);
  protocol.seal(1);
  EXPECT_DEATH(Protocol(0), "one commit");
  EXPECT_DEATH(protocol.open(1, {}), "opened already");
  EXPECT_DEATH(protocol.seal(1), "may not run");
  EXPECT_DEATH(protocol.acknowledge({1, 1}), "acknowledged out of order");
  EXPECT_DEATH(protocol.acknowledge({1, 2}), "never sealed");
  EXPECT_DEATH(protocol.acknowledge({1, -1}), "never sealed");
  EXPECT_DEATH(protocol.validate({1, 0}), "validated out of order");
  protocol.acknowledge({1, 0});
  protocol.acknowledge({1, 1});
  EXPECT_DEATH(protocol.acknowledge({1, 1}), "acknowledged out of order");
  EXPECT_DEATH(protocol.validate({1, 1}), "validated out of order");
  protocol.validate({1, 0});
  EXPECT_DEATH(protocol.validate({1, 0}), "validated out of order");
  EXPECT_DEATH(protocol.refute({1, 0}, "bad"), "was validated");
  EXPECT_DEATH(protocol.may_run(3), "not known");
  EXPECT_DEATH(static_cast<void>(protocol.state({1, 2})), "never sealed");
  const auto effect = protocol.request(2);
  protocol.close(2);
  EXPECT_DEATH(protocol.request(2), "not known|is closed");
  EXPECT_DEATH(protocol.close(2), "closed already");
  EXPECT_DEATH(protocol.seal(2), "may not run");
  EXPECT_EQ(protocol.take(effect), Release::kReleased);
  EXPECT_DEATH(protocol.take(effect), "not pending");
}

}  // namespace
}  // namespace fieldprint::commit
