// Ledgers that fail for a moment or for longer, under an engine that commits to them.

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <thread>

#include "engine/committer_testing.h"
#include "ledger/merkle.h"
#include "store/failing_store_testing.h"
#include "store/sqlite_ledger_store.h"
#include "store/stores_testing.h"

namespace fieldprint::engine {
namespace {

using core::SequenceId;
using std::chrono::hours;
using std::chrono::milliseconds;
using store::FailingStore;
using testing::anchored_endless;
using testing::endless;
using testing::expect_same;
using testing::leaves_of;
using testing::Recorded;
using testing::Request;
using testing::Served;
using testing::verdicts_of;
using Fate = FailingStore::Fate;

/// An engine over a ledger that a test lets fail.
struct Failing {
  explicit Failing(const Committer::Options& commit = {},
                   std::unique_ptr<store::LedgerStore> inner = *store::SqliteLedgerStore::open_in_memory()) {
    auto failing = std::make_unique<FailingStore>(std::move(inner));
    store = failing.get();
    store->fate = [this] { return fate.load(); };
    it.emplace(Options{.kv_blocks = 60, .scrub_share = 0}, commit,
               *store::SignedLog::open(std::move(failing), store::test_signer()));
  }
  std::atomic<Fate> fate = Fate::kDone;
  FailingStore* store = nullptr;
  std::optional<Recorded> it;
};

/// Steps until nothing has changed for some of them.
std::int64_t run_until_held(Recorded& it, SequenceId id) {
  std::int64_t before = -1;
  for (int idle = 0; idle < 40;) {
    EXPECT_TRUE(it.served->step());
    const std::int64_t outputs = it.probe().outputs(id);
    idle = outputs == before ? idle + 1 : 0;
    before = outputs;
  }
  return before;
}

/// Every record of the answer stands in the ledger once, in order.
void expect_entered_once(Recorded& it, SequenceId id) {
  const commit::Body& body = it.served.receipts.at(id).body;
  std::vector<store::Bytes> expected = commit::chain_of(body).value();
  expected.push_back(commit::leaf_of(commit::encode_body(body).value()));
  std::vector<store::Bytes> found;
  for (const store::Bytes& leaf : leaves_of(*it.log)) {
    if (std::ranges::find(expected, leaf) != expected.end()) found.push_back(leaf);
  }
  EXPECT_EQ(found, expected);
  EXPECT_TRUE(it.log->store().audit().ok());
}

TEST(LedgerOutage, ALedgerThatFailsForAMomentEndsNothingAndTakesEachRecordOnce) {
  const Request asked = endless(10, 300);
  const core::Answer expected = Served({.kv_blocks = 60}).answer(asked);
  for (const Fate fate : {Fate::kRefused, Fate::kLost}) {
    Failing failing({.run_ahead = 2, .reexecute_share = 0});
    Recorded& it = *failing.it;
    std::atomic<int> appends = 0;
    // Two of three attempts fail.
    failing.store->fate = [&] { return appends++ % 3 == 2 ? Fate::kDone : fate; };
    const SequenceId id = it.served.submit(asked);
    const SequenceId other = it.served.submit(endless(20, 200, 2));
    it.served.finish();
    EXPECT_TRUE(it.served.errors.empty());
    for (const SequenceId each : {id, other}) {
      ASSERT_TRUE(it.served.validated.contains(each));
      expect_entered_once(it, each);
    }
    expect_same(it.served.answers.at(id), expected);
    // How many there are depends on what gathers meanwhile; of three, two have failed.
    EXPECT_GE(appends, 3);
  }
}

TEST(LedgerOutage, WhileTheLedgerFailsGenerationIsHeldAndSaysWhy) {
  Failing failing({.run_ahead = 3, .reexecute_share = 0, .patience = hours(1)});
  Recorded& it = *failing.it;
  failing.fate = Fate::kRefused;
  const SequenceId id = it.served.submit(endless(10, 400));
  EXPECT_FALSE(it.served->outage());
  const std::int64_t outputs = run_until_held(it, id);
  EXPECT_GE(outputs, 64 * 2 - 10);
  EXPECT_LE(outputs, 64 * 2 + 2);
  ASSERT_TRUE(it.served->outage());
  EXPECT_NE(it.served->outage()->reason.find("the disk is full"), std::string::npos);
  EXPECT_EQ(it.served->outage()->patience, hours(1));
  EXPECT_GT(it.served->outage()->lasted.count(), 0);
  EXPECT_TRUE(it.served.receipts.empty());
  failing.fate = Fate::kDone;
  it.served.finish();
  EXPECT_TRUE(it.served.validated.contains(id));
  EXPECT_FALSE(it.served->outage());
  ASSERT_EQ(it.served.outages.size(), 2U);
  EXPECT_TRUE(it.served.outages[0]);
  EXPECT_FALSE(it.served.outages[1]);
  expect_entered_once(it, id);
}

TEST(LedgerOutage, WhenPatienceEndsTrajectoriesStopAndLaterOnesOpenWhenTheLedgerIsBack) {
  Failing failing({.run_ahead = 2, .reexecute_share = 0, .patience = milliseconds(100)});
  Recorded& it = *failing.it;
  const SequenceId id = it.served.submit(endless(10, 400));
  it.generate(id, 80);
  failing.fate = Fate::kRefused;
  it.served.finish();
  ASSERT_TRUE(it.served.errors.contains(id));
  EXPECT_EQ(it.served.errors.at(id).kind, ErrorKind::kEnvironment);
  EXPECT_NE(it.served.errors.at(id).message.find("the disk is full"), std::string::npos);
  const auto refused = it.served->submit(endless(10, 20));
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("the disk is full"), std::string::npos);
  failing.fate = Fate::kDone;
  Result<SequenceId> later = refused;
  for (int tries = 0; !later && tries < 1000; ++tries) {
    std::this_thread::sleep_for(milliseconds(10));
    later = it.served->submit(endless(10, 20));
  }
  ASSERT_TRUE(later.ok()) << later.error().message;
  it.served.finish();
  EXPECT_TRUE(it.served.validated.contains(*later));
  // What was sealed and what became of it stands in the ledger: every record has one verdict.
  it.committer.reset();
  std::vector<Digest> commits;
  for (const store::Bytes& leaf : leaves_of(*it.log)) {
    if (commit::record_kind(leaf) != "verdict") commits.push_back(ledger::leaf_hash(leaf));
  }
  std::vector<Digest> judged;
  bool bad = false;
  for (const commit::VerdictRecord& verdict : verdicts_of(*it.log)) {
    judged.insert(judged.end(), verdict.commits.begin(), verdict.commits.end());
    bad = bad || (!verdict.good && verdict.reason.find("the disk is full") != std::string::npos);
  }
  std::ranges::sort(commits);
  std::ranges::sort(judged);
  EXPECT_EQ(judged, commits);
  EXPECT_TRUE(bad);
}

TEST(LedgerOutage, AnEngineThatEndsWhileTheLedgerFailsDoesNotWaitForIt) {
  Failing failing({.run_ahead = 2, .reexecute_share = 0, .patience = hours(1)});
  failing.fate = Fate::kRefused;
  const SequenceId id = failing.it->served.submit(endless(10, 400));
  run_until_held(*failing.it, id);
  const auto begin = std::chrono::steady_clock::now();
  failing.it->committer.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));
  EXPECT_EQ(failing.it->log->store().size().value(), 0U);
}

TEST(LedgerOutage, WhatIsBoundToAnchorsWaitsWhileTheLedgerCannotBeReadAndGoesOn) {
  Recorded it({.kv_blocks = 60}, {.patience = hours(1)});
  const Request asked = anchored_endless(70, 20, 300, 1);
  const core::Answer expected = Served({.kv_blocks = 60}).answer(asked);
  const SequenceId bound = it.served.submit(asked);
  const SequenceId other = it.served.submit(endless(20, 300, 2));
  it.generate(bound, 20);
  std::vector<EffectOutcome> outcomes;
  it.anchors.make_unreadable(true);
  const std::int64_t outputs = it.probe().outputs(bound);
  const std::int64_t others = it.probe().outputs(other);
  ASSERT_TRUE(it.served->request_effect(bound, [&](const EffectOutcome& o) { outcomes.push_back(o); }).ok());
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(it.served->step());
  EXPECT_EQ(it.probe().outputs(bound), outputs);
  EXPECT_GT(it.probe().outputs(other), others + 20);
  EXPECT_TRUE(outcomes.empty());
  EXPECT_FALSE(it.served->submit(anchored_endless(70, 20, 100, 3)).ok());
  it.anchors.make_unreadable(false);
  it.served.finish();
  expect_same(it.served.answers.at(bound), expected);
  for (const SequenceId id : {bound, other}) EXPECT_TRUE(it.served.validated.contains(id));
  ASSERT_EQ(outcomes.size(), 1U);
  EXPECT_TRUE(outcomes[0].released);
}

TEST(LedgerOutage, ALedgerThatCannotBeReadForTooLongEndsWhatIsBoundAndNothingLater) {
  Recorded it({.kv_blocks = 60}, {.patience = milliseconds(0)});
  it.commits.holding = true;
  const SequenceId bound = it.served.submit(anchored_endless(70, 20, 300, 1));
  const SequenceId other = it.served.submit(endless(20, 100, 2));
  it.generate(bound, 20);
  std::vector<EffectOutcome> outcomes;
  ASSERT_TRUE(it.served->request_effect(bound, [&](const EffectOutcome& o) { outcomes.push_back(o); }).ok());
  it.anchors.make_unreadable(true);
  for (int i = 0; i < 5; ++i) it.served->step();
  ASSERT_TRUE(it.served.errors.contains(bound));
  EXPECT_NE(it.served.errors.at(bound).message.find("cannot be read"), std::string::npos);
  ASSERT_EQ(outcomes.size(), 1U);
  EXPECT_FALSE(outcomes[0].released);
  EXPECT_FALSE(it.served->submit(anchored_endless(70, 20, 100, 3)).ok());
  it.anchors.make_unreadable(false);
  it.commits.let_go();
  const SequenceId later = it.served.submit(anchored_endless(70, 20, 100, 3));
  it.served.finish();
  for (const SequenceId id : {other, later}) EXPECT_TRUE(it.served.validated.contains(id));
  EXPECT_FALSE(it.served.validated.contains(bound));
  it.committer.reset();
  const auto verdicts = verdicts_of(*it.log);
  EXPECT_EQ(std::ranges::count_if(verdicts, [](const auto& verdict) { return !verdict.good; }), 1)
      << "however often it was looked at";
}

/// Has the first commit of the trajectory validated, and returns when that is told.
void validate_first(Recorded& it, SequenceId id) {
  it.committer->pages_checked(id, 1, 1);
  it.committer->request(id, 1);  // so that its verdict is urgent
  while (it.committer->news().effects.empty()) std::this_thread::sleep_for(milliseconds(1));
}

/// The outcome, once it is told.
EffectOutcome outcome_of(Recorded& it, EffectId effect) {
  while (true) {
    for (const EffectNews& news : it.committer->news().effects) {
      if (news.effect == effect) return news.outcome;
    }
    std::this_thread::sleep_for(milliseconds(1));
  }
}

TEST(LedgerOutage, NoEffectLeavesForATrajectoryThatStopsWhileTheLedgerIsUnread) {
  Recorded it({.kv_blocks = 60}, {.reexecute_share = 0, .verdict_delay = hours(1), .patience = hours(1)});
  it.commits.holding = true;
  const SequenceId id = it.served.submit(anchored_endless(70, 20, 300, 1));
  it.generate(id, 20);
  validate_first(it, id);
  it.anchors.make_unreadable(true);
  const EffectId effect = it.committer->request(id, 1);
  EXPECT_TRUE(it.committer->news().effects.empty());
  it.committer->refute(id, 1, "a damaged page");
  EXPECT_TRUE(it.committer->news().effects.empty()) << "what is unread may be a revocation";
  it.anchors.make_unreadable(false);
  EXPECT_TRUE(outcome_of(it, effect).released);
}

TEST(LedgerOutage, NoEffectLeavesWhenPatienceEndsWhileTheLedgerIsUnread) {
  Failing failing({.reexecute_share = 0, .verdict_delay = hours(1), .patience = milliseconds(200)});
  Recorded& it = *failing.it;
  it.commits.holding = true;
  const SequenceId id = it.served.submit(anchored_endless(70, 20, 300, 1));
  const SequenceId other = it.served.submit(endless(20, 300, 2));
  it.generate(id, 20);
  it.generate(other, 20);
  validate_first(it, id);
  failing.fate = Fate::kRefused;
  it.committer->request(other, 1);
  it.committer->pages_checked(other, 1, 1);
  // From here on the append fails, and later than that nothing can be read.
  std::this_thread::sleep_for(milliseconds(50));
  it.anchors.make_unreadable(true);
  EXPECT_FALSE(outcome_of(it, it.committer->request(id, 1)).released);
}

TEST(LedgerOutage, ALedgerThatGainsFasterThanItIsReadEndsNothing) {
  Recorded it({.kv_blocks = 60}, {.reexecute_share = 0, .patience = milliseconds(0)});
  const SequenceId bound = it.served.submit(anchored_endless(70, 20, 100, 1));
  it.generate(bound, 20);
  it.anchors.outpaced = true;
  const std::int64_t outputs = it.probe().outputs(bound);
  // Longer than a silent ledger is waited for without patience.
  const auto end = std::chrono::steady_clock::now() + milliseconds(1200);
  while (std::chrono::steady_clock::now() < end) ASSERT_TRUE(it.served->step());
  EXPECT_EQ(it.probe().outputs(bound), outputs);
  EXPECT_TRUE(it.served.errors.empty());
  EXPECT_FALSE(it.served->outage());
  it.anchors.outpaced = false;
  it.served.finish();
  EXPECT_TRUE(it.served.validated.contains(bound));
}

TEST(LedgerOutage, WhatStopsTwiceHasOneVerdictForEachCommit) {
  Failing failing({.run_ahead = 8, .reexecute_share = 0, .patience = milliseconds(200)});
  Recorded& it = *failing.it;
  it.commits.holding = true;
  const SequenceId id = it.served.submit(endless(10, 400));
  it.generate(id, 80);
  failing.fate = Fate::kRefused;
  it.generate(id, 150);
  it.committer->refute(id, 1, "a damaged page");
  it.served.finish();
  ASSERT_TRUE(it.served.errors.contains(id));
  std::this_thread::sleep_for(milliseconds(300));
  it.committer->news();  // patience has ended
  ASSERT_FALSE(it.served->submit(endless(10, 20)).ok());
  failing.fate = Fate::kDone;
  it.committer.reset();
  std::map<Digest, int> judged;
  for (const commit::VerdictRecord& verdict : verdicts_of(*it.log)) {
    for (const Digest& leaf : verdict.commits) ++judged[leaf];
  }
  EXPECT_FALSE(judged.empty());
  for (const auto& [leaf, times] : judged) EXPECT_EQ(times, 1) << to_hex(leaf);
}

/// Lets no file of this process become longer than this while it lives, as on a full disk.
class FullDisk {
 public:
  explicit FullDisk(std::uintmax_t bytes) {
    std::signal(SIGXFSZ, SIG_IGN);
    EXPECT_EQ(::getrlimit(RLIMIT_FSIZE, &before_), 0);
    rlimit full = before_;
    full.rlim_cur = bytes;
    EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &full), 0);
  }
  ~FullDisk() { EXPECT_EQ(::setrlimit(RLIMIT_FSIZE, &before_), 0); }
  FullDisk(const FullDisk&) = delete;
  FullDisk& operator=(const FullDisk&) = delete;

 private:
  rlimit before_{};
};

class RealLedgerOutage : public store::WithFolder {};

TEST_F(RealLedgerOutage, ADiskThatIsFullAndFreedAgain) {
  const std::string file = path();
  Recorded it(
      {.kv_blocks = 60}, {.run_ahead = 2, .reexecute_share = 0, .patience = hours(1)},
      *store::SignedLog::open(*store::open_ledger(file, store::Access::kAppend), store::test_signer()));
  const SequenceId id = it.served.submit(endless(10, 300));
  it.generate(id, 70);
  {
    const FullDisk full(std::filesystem::file_size(file + "-wal"));
    run_until_held(it, id);
    ASSERT_TRUE(it.served->outage());
    EXPECT_NE(it.served->outage()->reason.find(file), std::string::npos) << it.served->outage()->reason;
  }
  it.served.finish();
  ASSERT_TRUE(it.served.validated.contains(id));
  expect_entered_once(it, id);
}

TEST_F(RealLedgerOutage, AServerThatIsKilledAndStartedAgain) {
  std::string why;
  const auto server = store::TemporaryPostgres::start(why);
  if (server == nullptr) GTEST_SKIP() << why;
  Recorded it({.kv_blocks = 60}, {.run_ahead = 2, .reexecute_share = 0, .patience = hours(1)},
              *store::SignedLog::open(*store::open_ledger(server->url("outage"), store::Access::kAppend),
                                      store::test_signer()));
  const SequenceId id = it.served.submit(endless(10, 500));
  for (std::int64_t outputs = 70; outputs < 400; outputs += 150) {
    it.generate(id, outputs);
    server->kill();
    run_until_held(it, id);
    ASSERT_FALSE(it.served.errors.contains(id)) << it.served.errors.at(id).message;
    ASSERT_TRUE(it.served->outage());
    ASSERT_TRUE(server->run());
  }
  it.served.finish();
  ASSERT_FALSE(it.served.errors.contains(id)) << it.served.errors.at(id).message;
  ASSERT_TRUE(it.served.validated.contains(id));
  expect_entered_once(it, id);
}

}  // namespace
}  // namespace fieldprint::engine
