#include "commit/protocol.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

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

// A plain account of what happened, kept beside the protocol: no counters, only histories.
struct Account {
  struct Entry {
    bool durable = false, validated = false, refuted = false;
  };
  std::vector<Digest> anchors;
  std::vector<Entry> commits;
  bool revoked = false, stopped = false, closed = false;
  std::int32_t effects = 0;

  std::int32_t unvalidated() const {
    return static_cast<std::int32_t>(
        std::count_if(commits.begin(), commits.end(), [](const Entry& e) { return !e.validated; }));
  }
  bool settled() const {
    return closed && effects == 0 && std::all_of(commits.begin(), commits.end(), [](const Entry& e) {
             return e.validated || e.refuted;
           });
  }
  CommitState state(std::size_t i) const {
    if (commits[i].refuted) return CommitState::kRefuted;
    if (commits[i].validated) return CommitState::kValidated;
    return commits[i].durable ? CommitState::kDurable : CommitState::kSealed;
  }
};

class Simulation {
 public:
  Simulation(std::uint64_t seed, std::int32_t run_ahead)
      : random_(seed), run_ahead_(run_ahead), protocol_(run_ahead) {}

  void step() {
    switch (random_() % 9) {
      case 0:
        return open();
      case 1:
      case 2:
        return seal();
      case 3:
        return acknowledge();
      case 4:
      case 5:
        return validate();
      case 6:
        return random_() % 8 == 0 ? refute() : request();
      case 7:
        return random_() % 40 == 0 ? revoke() : take();
      default:
        return random_() % 4 == 0 ? close() : take();
    }
  }

  void compare() {
    for (auto it = accounts_.begin(); it != accounts_.end();) {
      const auto& [id, account] = *it;
      ASSERT_EQ(protocol_.known(id), !account.settled());
      if (account.settled()) {
        it = accounts_.erase(it);
        continue;
      }
      EXPECT_EQ(protocol_.stopped(id), account.stopped);
      EXPECT_EQ(protocol_.may_run(id),
                !account.stopped && !account.closed && account.unvalidated() < run_ahead_);
      ASSERT_EQ(protocol_.sealed(id), static_cast<std::int32_t>(account.commits.size()));
      std::optional<Commit> next;
      for (std::size_t i = 0; i < account.commits.size(); ++i) {
        const Commit commit{id, static_cast<std::int32_t>(i)};
        EXPECT_EQ(protocol_.state(commit), account.state(i));
        if (account.state(i) == CommitState::kDurable && !next) next = commit;
      }
      EXPECT_EQ(protocol_.to_validate(id), next);
      EXPECT_EQ(protocol_.validated(id),
                static_cast<std::int32_t>(account.commits.size()) - account.unvalidated());
      ++it;
    }
  }

  int released = 0;
  int withheld = 0;

 private:
  void open() {
    const Digest anchors[] = {Digest{static_cast<std::uint8_t>(random_() % 12)},
                              Digest{static_cast<std::uint8_t>(random_() % 12)}};
    Account account;
    account.anchors.assign(anchors, anchors + random_() % 3);
    const bool sound = std::none_of(account.anchors.begin(), account.anchors.end(),
                                    [&](const Digest& id) { return revoked_.contains(id); });
    ASSERT_EQ(protocol_.open(next_, account.anchors), sound);
    if (sound) accounts_[next_] = account;
    ++next_;
  }

  std::map<Protocol::Trajectory, Account>::iterator any() {
    if (accounts_.empty()) return accounts_.end();
    return std::next(accounts_.begin(), static_cast<std::ptrdiff_t>(random_() % accounts_.size()));
  }

  void seal() {
    const auto it = any();
    if (it == accounts_.end() || !protocol_.may_run(it->first)) return;
    EXPECT_EQ(protocol_.seal(it->first),
              (Commit{it->first, static_cast<std::int32_t>(it->second.commits.size())}));
    it->second.commits.emplace_back();
  }

  void acknowledge() {
    const auto it = any();
    if (it == accounts_.end()) return;
    auto& commits = it->second.commits;
    const auto first = std::find_if(commits.begin(), commits.end(), [](const auto& e) { return !e.durable; });
    if (first == commits.end()) return;
    protocol_.acknowledge({it->first, static_cast<std::int32_t>(first - commits.begin())});
    first->durable = true;
  }

  void validate() {
    const auto it = any();
    if (it == accounts_.end()) return;
    const auto commit = protocol_.to_validate(it->first);
    if (!commit) return;
    protocol_.validate(*commit);
    it->second.commits[static_cast<std::size_t>(commit->number)].validated = true;
  }

  void refute() {
    const auto it = any();
    if (it == accounts_.end()) return;
    auto& account = it->second;
    const auto validated = static_cast<std::uint64_t>(protocol_.validated(it->first));
    if (validated == account.commits.size()) return;
    const std::uint64_t number = validated + random_() % (account.commits.size() - validated);
    protocol_.refute({it->first, static_cast<std::int32_t>(number)}, "bad");
    for (std::size_t i = number; i < account.commits.size(); ++i) account.commits[i].refuted = true;
    account.stopped = true;
  }

  void revoke() {
    const Digest anchor{static_cast<std::uint8_t>(random_() % 12)};
    protocol_.revoke(anchor, "revoked");
    revoked_.insert(anchor);
    for (auto& [id, account] : accounts_) {
      if (std::find(account.anchors.begin(), account.anchors.end(), anchor) == account.anchors.end())
        continue;
      account.revoked = account.stopped = true;
      for (auto& commit : account.commits) commit.refuted = !commit.validated;
    }
  }

  void request() {
    const auto it = any();
    if (it == accounts_.end() || it->second.closed) return;
    effects_[protocol_.request(it->first)] = {it->first, it->second.commits.size()};
    ++it->second.effects;
  }

  void take() {
    if (effects_.empty()) return;
    const auto it = std::next(effects_.begin(), static_cast<std::ptrdiff_t>(random_() % effects_.size()));
    Account& account = accounts_.at(it->second.first);
    const auto causes = std::span(account.commits).first(it->second.second);
    const bool bad =
        account.revoked || std::any_of(causes.begin(), causes.end(), [](const auto& e) { return e.refuted; });
    const bool good = std::all_of(causes.begin(), causes.end(), [](const auto& e) { return e.validated; });
    const Release expected = bad ? Release::kWithheld : good ? Release::kReleased : Release::kPending;
    ASSERT_EQ(protocol_.take(it->first), expected);
    if (expected == Release::kPending) return;
    ++(bad ? withheld : released);
    --account.effects;
    effects_.erase(it);
  }

  void close() {
    const auto it = any();
    if (it == accounts_.end() || it->second.closed) return;
    protocol_.close(it->first);
    it->second.closed = true;
  }

  std::mt19937_64 random_;
  std::int32_t run_ahead_;
  Protocol protocol_;
  std::map<Protocol::Trajectory, Account> accounts_;
  std::map<Protocol::Effect, std::pair<Protocol::Trajectory, std::size_t>> effects_;
  std::set<Digest> revoked_;
  Protocol::Trajectory next_ = 1;
};

TEST(Protocol, LongRandomLivesAgreeWithAPlainAccountOfThem) {
  int released = 0;
  int withheld = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Simulation simulation(seed, static_cast<std::int32_t>(1 + seed % 4));
    for (int i = 0; i < 500 && !::testing::Test::HasFailure(); ++i) {
      simulation.step();
      simulation.compare();
    }
    ASSERT_FALSE(::testing::Test::HasFailure()) << "seed " << seed;
    released += simulation.released;
    withheld += simulation.withheld;
  }
  EXPECT_GT(released, 1000);
  EXPECT_GT(withheld, 100);
}

}  // namespace
}  // namespace fieldprint::commit
