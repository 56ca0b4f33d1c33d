#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <span>

#include "commit/protocol.h"

namespace fieldprint::commit {
namespace {

using Commit = Protocol::Commit;
using Release = Protocol::Release;

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

TEST(ProtocolSimulation, LongRandomLivesAgreeWithAPlainAccountOfThem) {
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
