#include "scheduler/fair_share.h"

#include <gtest/gtest.h>

namespace fieldprint::scheduler {
namespace {

TEST(FairShare, CountsWhatATenantWasGiven) {
  FairShare shares;
  shares.enter(1);
  shares.enter(2);
  shares.charge(1, 10);
  shares.charge(1, 5);
  EXPECT_EQ(shares.served(1), 15);
  EXPECT_EQ(shares.served(2), 0);
}

TEST(FairShare, IdleTimeEarnsNoCredit) {
  FairShare shares;
  shares.enter(1);
  shares.charge(1, 100);
  shares.enter(2);
  EXPECT_EQ(shares.served(2), 100);
}

TEST(FairShare, LeavingForAMomentForgivesNoDebt) {
  FairShare shares;
  shares.enter(1);
  shares.enter(2);
  shares.charge(1, 100);
  shares.leave(1);
  shares.enter(1);
  EXPECT_EQ(shares.served(1), 100);
  EXPECT_EQ(shares.served(2), 0);
}

TEST(FairShare, ForgetsIdleTenantsOnceTheirCounterSaysNothing) {
  FairShare shares;
  for (core::TenantId tenant = 0; tenant < 1000; ++tenant) {
    shares.enter(tenant);
    shares.charge(tenant, 7);
    shares.leave(tenant);
  }
  EXPECT_LE(shares.size(), 1U);
  EXPECT_EQ(shares.served(5), 7000);
}

TEST(FairShare, TenantLeavesOnlyWithItsLastSequence) {
  FairShare shares;
  shares.enter(1);
  shares.enter(1);
  shares.leave(1);
  shares.charge(1, 3);
  EXPECT_EQ(shares.served(1), 3);
}

TEST(FairShareDeathTest, ChargingATenantWithoutSequencesStopsTheProcess) {
  FairShare shares;
  EXPECT_DEATH(shares.charge(1, 1), "no sequence");
}

}  // namespace
}  // namespace fieldprint::scheduler
