#include "engine/authority.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "anchor/anchor_testing.h"
#include "base/bounds.h"
#include "base/utc_time.h"
#include "engine/anchor_office.h"
#include "store/data_folder.h"
#include "store/stores_testing.h"

namespace fieldprint::engine {
namespace {

using anchor::Anchor;
using anchor::Role;
using anchor::testing::anchor_of;
using anchor::testing::key_of;
using anchor::testing::log_key;

class EveryAuthority : public store::StoreOfKind {
 protected:
  std::unique_ptr<store::SignedLog> open_log() const {
    auto log = store::SignedLog::open(open(), log_key());
    EXPECT_TRUE(log.ok()) << log.error().message;
    return std::move(*log);
  }
};

std::unique_ptr<Authority> follow(store::SignedLog& log) {
  auto authority = Authority::follow(log.store(), log.verifier());
  EXPECT_TRUE(authority.ok()) << authority.error().message;
  return std::move(*authority);
}

anchor::Bytes record(const Authority& authority, Role role, const Anchor& anchor) {
  anchor::ActionRecord record = authority.registry().draft(role, anchor.id(), 1000);
  if (role == Role::kPropose) record.canonical = anchor.canonical_bytes();
  if (role == Role::kRevoke) record.reason = "poisoned";
  sign(record, log_key());
  return encode(record);
}

TEST_P(EveryAuthority, AnotherProcessesRevocationIsSeenByTheNextPoll) {
  auto ours = open_log();
  auto theirs = open_log();
  auto authority = follow(*ours);
  const Anchor anchor = anchor_of("be kind");
  ASSERT_TRUE(adopt(*authority, *ours, anchor, {}).ok());
  (void)authority->poll();
  EXPECT_TRUE(authority->admit(anchor.id(), {}).ok());
  auto other = follow(*theirs);
  EXPECT_TRUE(other->admit(anchor.id(), {}).ok());
  ASSERT_TRUE(enter(*other, *theirs, record(*other, Role::kRevoke, anchor)).ok());
  // PostgreSQL hands its announcement over a moment after the commit.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  bool left = false;
  while (!left && std::chrono::steady_clock::now() < deadline) left = authority->poll();
  EXPECT_TRUE(left);
  EXPECT_FALSE(authority->in_force(anchor.id(), 0).ok());
  EXPECT_EQ(authority->size(), 4u);
  EXPECT_EQ(authority->size(), other->size());
}

TEST_P(EveryAuthority, APollWithoutNewsSaysSo) {
  auto log = open_log();
  auto authority = follow(*log);
  EXPECT_FALSE(authority->poll());
  ASSERT_TRUE(log->append(std::vector<store::Bytes>{store::leaf_of(1), store::leaf_of(2)}).ok());
  EXPECT_FALSE(authority->poll());
  EXPECT_EQ(follow(*log)->size(), 2u);
}

TEST_P(EveryAuthority, AFileIsAdoptedOnceWhileThereIsNoPolicy) {
  auto log = open_log();
  auto authority = follow(*log);
  const Anchor anchor = anchor_of("be kind");
  ASSERT_TRUE(adopt(*authority, *log, anchor, {}).ok());
  ASSERT_TRUE(adopt(*authority, *log, anchor, {}).ok());
  EXPECT_EQ(*log->store().size(), 3u);
  // A later process finds it promoted.
  auto again = follow(*log);
  ASSERT_TRUE(adopt(*again, *log, anchor, {}).ok());
  EXPECT_EQ(*log->store().size(), 3u);
  // What would not be admitted afterwards is not promoted either.
  anchor::Terms terms;
  terms.tenants = {"acme"};
  EXPECT_FALSE(adopt(*again, *log, anchor_of("x", terms), {}).ok());
  EXPECT_EQ(*log->store().size(), 3u);
  ASSERT_TRUE(enter(*again, *log, record(*again, Role::kRevoke, anchor)).ok());
  const Status refused = adopt(*again, *log, anchor, {});
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("revoked: poisoned"), std::string::npos);
  EXPECT_EQ(*log->store().size(), 4u);
}

TEST_P(EveryAuthority, UnderAPolicyNothingIsAdopted) {
  auto log = open_log();
  auto authority = follow(*log);
  const Anchor anchor = anchor_of("be kind");
  ASSERT_TRUE(adopt(*authority, *log, anchor, {}).ok());
  anchor::testing::Office office;
  ASSERT_TRUE(
      enter(*authority, *log, encode(office.next(anchor::testing::shared_policy(), {"ada", "alf"}))).ok());
  EXPECT_FALSE(adopt(*authority, *log, anchor, {}).ok());
  EXPECT_FALSE(adopt(*authority, *log, anchor_of("other"), {}).ok());
  EXPECT_EQ(*log->store().size(), 4u);
}

TEST_P(EveryAuthority, WhatWouldBeRefusedDoesNotEnterTheLedger) {
  auto log = open_log();
  auto authority = follow(*log);
  auto refused = enter(*authority, *log, record(*authority, Role::kVerify, anchor_of("x")));
  EXPECT_EQ(refused.error().kind, ErrorKind::kCaller);
  EXPECT_EQ(*log->store().size(), 0u);
}

TEST_P(EveryAuthority, OfTwoWhoEnterTheSameAtOnceOneIsRefusedHoweverManyWereBefore) {
  auto ours = open_log();
  auto theirs = open_log();
  auto authority = follow(*ours);
  const anchor::Bytes unknown = record(*authority, Role::kVerify, anchor_of("never proposed"));
  const auto many = static_cast<std::size_t>(bounds::kMaxRefusedRecords) + 1;
  ASSERT_TRUE(ours->append(std::vector<store::Bytes>(many, unknown)).ok());
  (void)authority->poll();
  auto other = follow(*theirs);
  for (int round = 0; round < 8; ++round) {
    const anchor::Bytes leaf = record(*authority, Role::kPropose, anchor_of(std::to_string(round)));
    bool entered = false;
    std::thread thread([&] { entered = enter(*other, *theirs, leaf).ok(); });
    const bool mine = enter(*authority, *ours, leaf).ok();
    thread.join();
    EXPECT_NE(mine, entered) << round;
  }
}

TEST_P(EveryAuthority, ARecordOfTheFutureDoesNotEnterTheLedger) {
  auto log = open_log();
  auto authority = follow(*log);
  const auto proposal = [&](std::int64_t time) {
    const Anchor anchor = anchor_of("at " + std::to_string(time));
    anchor::ActionRecord record = authority->registry().draft(Role::kPropose, anchor.id(), time);
    record.canonical = anchor.canonical_bytes();
    sign(record, log_key());
    return encode(record);
  };
  const std::int64_t ahead = utc_now() + bounds::kMaxRecordLeadSeconds;
  auto refused = enter(*authority, *log, proposal(ahead + 60));
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::kCaller);
  EXPECT_NE(refused.error().message.find(format_utc(ahead + 60)), std::string::npos);
  EXPECT_NE(refused.error().message.find("the clock of this machine says"), std::string::npos);
  EXPECT_FALSE(adopt(*authority, *log, anchor_of("x"), {.time = ahead + 60}).ok());
  anchor::testing::Office office;
  office.now = ahead + 60;
  EXPECT_FALSE(
      enter(*authority, *log, encode(office.next(anchor::testing::shared_policy(), {"ada", "alf"}))).ok());
  EXPECT_EQ(*log->store().size(), 0u);
  EXPECT_TRUE(enter(*authority, *log, proposal(ahead - 60)).ok());
  // Where the ledger's time is ahead already, it can be gone on with: a revocation must be possible.
  ASSERT_TRUE(log->append(std::vector<store::Bytes>{
                              encode(office.next(anchor::testing::shared_policy(), {"ada", "alf"}))})
                  .ok());
  (void)authority->poll();
  ASSERT_TRUE(authority->registry().policy());
  anchor::Policy next = anchor::testing::shared_policy();
  next.number = 2;
  next.parent = authority->registry().policy_digest();
  next.time = authority->registry().latest_time();
  anchor::PolicyRecord record{std::move(next), {}};
  for (const char* admin : {"ada", "alf"}) sign(record, key_of(admin));
  EXPECT_TRUE(enter(*authority, *log, encode(record)).ok());
}

TEST_P(EveryAuthority, ManyThreadsAskWhileOneFollows) {
  auto log = open_log();
  auto authority = follow(*log);
  const Anchor anchor = anchor_of("be kind");
  ASSERT_TRUE(adopt(*authority, *log, anchor, {}).ok());
  std::atomic<bool> revoked = false;
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      while (authority->in_force(anchor.id(), 0).ok()) EXPECT_LE(authority->size(), 24u);
      EXPECT_TRUE(revoked);
    });
  }
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(log->append(std::vector<store::Bytes>{store::leaf_of(1)}).ok());
    (void)authority->poll();
  }
  const anchor::Bytes leaf = record(*authority, Role::kRevoke, anchor);
  revoked = true;
  ASSERT_TRUE(enter(*authority, *log, leaf).ok());
  for (std::thread& thread : threads) thread.join();
}

INSTANTIATE_TEST_SUITE_P(Stores, EveryAuthority,
                         ::testing::Values(store::Kind::kSqlite, store::Kind::kPostgres), store::kind_name);

TEST(Authority, ALedgerInMemoryIsFollowedToo) {
  auto log = *store::open_passing_log();
  auto authority = follow(*log);
  const Anchor anchor = anchor_of("be kind");
  EXPECT_TRUE(adopt(*authority, *log, anchor, {}).ok());
  EXPECT_EQ(authority->size(), 3u);
  EXPECT_TRUE(authority->admit(anchor.id(), {}).ok());
}

}  // namespace
}  // namespace fieldprint::engine
