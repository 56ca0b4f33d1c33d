#include "engine/committer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/bounds.h"
#include "engine/committer_testing.h"
#include "ledger/merkle.h"

namespace fieldprint::engine {
namespace {

using core::SequenceId;
using testing::anchored_endless;
using testing::endless;
using testing::expect_same;
using testing::leaves_of;
using testing::Recorded;
using testing::Request;
using testing::Served;
using testing::verdicts_of;

/// Leaf hashes of the leaves of a kind.
std::vector<Digest> hashes_of(store::SignedLog& log, std::string_view kind) {
  std::vector<Digest> hashes;
  for (const store::Bytes& leaf : leaves_of(log)) {
    if (commit::record_kind(leaf) == kind) hashes.push_back(ledger::leaf_hash(leaf));
  }
  return hashes;
}

TEST(Committer, TheRecordsOfATrajectoryAreTheChainOfItsBody) {
  for (const std::size_t prompt : {5U, 64U, 65U, 100U}) {
    Recorded it;
    const SequenceId id = it.served.submit(endless(prompt, 200));
    it.served.finish();
    ASSERT_TRUE(it.served.receipts.contains(id));
    const commit::Body& body = it.served.receipts.at(id).body;
    std::vector<store::Bytes> expected = commit::chain_of(body).value();
    expected.push_back(commit::leaf_of(commit::encode_body(body).value()));
    std::vector<store::Bytes> found;
    for (const store::Bytes& leaf : leaves_of(*it.log)) {
      if (commit::record_kind(leaf) != "verdict") found.push_back(leaf);
    }
    EXPECT_EQ(found, expected) << "prompt of " << prompt;
    EXPECT_EQ(body.parent, ledger::leaf_hash(expected[expected.size() - 2]));
    EXPECT_GE(expected.size(), 4U);
  }
}

TEST(Committer, EveryCommitGetsOneGoodVerdictAndTheAnswerIsCalledValidated) {
  // With the larger share, commits of one trajectory that get their verdicts together fall into two records.
  for (const double share : {1.0 / 512, 0.9}) {
    Recorded it({.kv_blocks = 60}, {.reexecute_share = share});
    std::vector<SequenceId> ids;
    // Every commit holds a block: the prompt fills one too.
    for (std::uint64_t seed = 0; seed < 4; ++seed) ids.push_back(it.served.submit(endless(70, 150, seed)));
    it.served.finish();
    std::vector<Digest> judged;
    for (const commit::VerdictRecord& verdict : verdicts_of(*it.log)) {
      EXPECT_TRUE(verdict.good);
      EXPECT_GT(verdict.pages_checked, 0U);
      judged.insert(judged.end(), verdict.commits.begin(), verdict.commits.end());
    }
    std::vector<Digest> commits;
    for (const char* kind : {"open", "segment", "answer"}) {
      const std::vector<Digest> hashes = hashes_of(*it.log, kind);
      commits.insert(commits.end(), hashes.begin(), hashes.end());
    }
    std::ranges::sort(judged);
    std::ranges::sort(commits);
    EXPECT_EQ(judged, commits);
    for (const SequenceId id : ids) {
      ASSERT_TRUE(it.served.validated.contains(id));
      EXPECT_EQ(it.served.validated.at(id).commits, 1 + 2 + 1);
    }
  }
}

TEST(Committer, RecordingChangesNoAnswer) {
  Served plain({.kv_blocks = 60});
  Recorded it;
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    plain.submit(testing::request(40, 150, seed));
    it.served.submit(testing::request(40, 150, seed));
  }
  plain.finish();
  it.served.finish();
  ASSERT_EQ(it.served.answers.size(), 3U);
  for (const auto& [id, answer] : plain.answers) expect_same(it.served.answers.at(id), answer);
}

TEST(Committer, ATrajectoryRunsAheadOfValidationSoFarAndNoFurther) {
  const Request asked = endless(10, 400);
  Served plain({.kv_blocks = 60});
  const core::Answer expected = plain.answer(asked);
  for (const std::int32_t run_ahead : {1, 3}) {
    Recorded it({.kv_blocks = 60}, {.run_ahead = run_ahead});
    it.commits.holding = true;
    const SequenceId id = it.served.submit(asked);
    std::int64_t before = -1;
    for (int idle = 0; idle < 20;) {
      ASSERT_TRUE(it.served->step());
      const std::int64_t outputs = it.probe().outputs(id);
      idle = outputs == before ? idle + 1 : 0;
      before = outputs;
    }
    // The prompt's commit and run_ahead − 1 blocks are sealed, and a step or two were under way.
    const std::int64_t filled = 64 * (run_ahead - 1);
    EXPECT_GE(before, std::max<std::int64_t>(filled - 10, 1)) << run_ahead;
    EXPECT_LE(before, filled + 2) << run_ahead;
    it.commits.let_go();
    it.served.finish();
    ASSERT_TRUE(it.served.answers.contains(id));
    expect_same(it.served.answers.at(id), expected);
    EXPECT_TRUE(it.served.validated.contains(id));
  }
}

TEST(Committer, AnAnchorRevokedWhileServingEndsItsSequencesInThatStepAndNoOther) {
  Recorded it({.kv_blocks = 60, .scrub_share = 0});
  const SequenceId bound = it.served.submit(anchored_endless(70, 20, 300, 1));
  const SequenceId other = it.served.submit(endless(20, 100, 2));
  it.generate(bound, 80);
  const std::int64_t outputs = it.probe().outputs(bound);
  it.anchors.revoke(sha256("an anchor"));
  it.served->step();
  ASSERT_TRUE(it.served.errors.contains(bound));
  EXPECT_NE(it.served.errors.at(bound).message.find("revoked"), std::string::npos);
  EXPECT_NE(it.served.errors.at(bound).message.find(fmt::format("of its {} tokens", outputs)),
            std::string::npos)
      << "a token was generated after the revocation: " << it.served.errors.at(bound).message;
  it.served.finish();
  EXPECT_TRUE(it.served.validated.contains(other));
  EXPECT_FALSE(it.served.validated.contains(bound));
  EXPECT_FALSE(it.served->submit(anchored_endless(70, 20, 300, 3)).ok());
  it.committer.reset();
  const auto verdicts = verdicts_of(*it.log);
  EXPECT_TRUE(std::ranges::any_of(verdicts, [](const auto& verdict) { return !verdict.good; }));
}

// An answer whose client is gone: every commit is durable and none has a verdict.
SequenceId close_unvalidated(Recorded& it, Request asked) {
  it.commits.holding = true;
  const SequenceId id = it.served.submit(std::move(asked));
  while (!it.served.receipts.contains(id)) EXPECT_TRUE(it.served->step());
  it.served->cancel(id);
  it.served->step();
  return id;
}

void expect_all_bad(Recorded& it, std::string_view reason) {
  it.committer.reset();
  const auto verdicts = verdicts_of(*it.log);
  ASSERT_EQ(verdicts.size(), 1U);
  EXPECT_FALSE(verdicts[0].good);
  EXPECT_NE(verdicts[0].reason.find(reason), std::string::npos) << verdicts[0].reason;
  std::vector<Digest> commits = hashes_of(*it.log, "open");
  for (const char* kind : {"segment", "answer"}) {
    const std::vector<Digest> hashes = hashes_of(*it.log, kind);
    commits.insert(commits.end(), hashes.begin(), hashes.end());
  }
  EXPECT_EQ(verdicts[0].commits, commits);
}

TEST(Committer, AClosedAnswerThatIsRefutedGetsItsBadVerdict) {
  Recorded it;
  const SequenceId id = close_unvalidated(it, endless(10, 100));
  it.committer->refute(id, 0, "a page differs");
  expect_all_bad(it, "a page differs");
}

TEST(Committer, AReasonThatIsTooLongOrNoUtf8IsRecordedAsFarAsItCanBe) {
  Recorded it;
  const SequenceId id = close_unvalidated(it, endless(10, 100));
  const auto most = static_cast<std::size_t>(bounds::kMaxVerdictReasonBytes);
  const std::string before(most - 4, 'x');
  it.committer->refute(id, 0, before + "\xff\u00e9\u00e9");
  expect_all_bad(it, before + "\ufffd");
}

TEST(Committer, AClosedAnswerWhoseAnchorIsRevokedGetsItsBadVerdict) {
  Recorded it;
  close_unvalidated(it, anchored_endless(70, 10, 100, 1));
  it.anchors.revoke(sha256("an anchor"));
  (void)it.committer->news();
  expect_all_bad(it, "revoked");
}

TEST(Committer, AnAnswerWhoseAnchorsAreAllRevokedGetsOneBadVerdict) {
  Recorded it;
  it.commits.holding = true;
  Request asked = anchored_endless(70, 20, 300, 1);
  asked.anchors.push_back(sha256("another anchor"));
  const SequenceId id = it.served.submit(asked);
  it.generate(id, 80);
  for (const Digest& anchor : asked.anchors) it.anchors.revoke(anchor);
  it.served.finish();
  EXPECT_TRUE(it.served.errors.contains(id));
  it.committer.reset();
  const auto verdicts = verdicts_of(*it.log);
  EXPECT_EQ(std::ranges::count_if(verdicts, [](const auto& verdict) { return !verdict.good; }), 1);
}

/// A trajectory whose first commit is durable, and a committer that sleeps until its verdict is asked for.
struct Judged : Recorded {
  Judged() : Recorded({.kv_blocks = 60}, {.reexecute_share = 0, .verdict_delay = std::chrono::hours(1)}) {
    commits.holding = true;
    id = served.submit(anchored_endless(70, 20, 300, 1));
    generate(id, 20);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_TRUE(verdicts_of(*log).empty());
  }
  /// What becomes of an effect that depends on the first commit.
  EffectOutcome judge() {
    (void)committer->request(id, 1);
    committer->pages_checked(id, 1, 1);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    // News are asked for when the verdict is durable, so that the committer alone asks about the anchor
    // before.
    while (std::chrono::steady_clock::now() < deadline) {
      if (verdicts_of(*log).empty()) continue;
      const News news = committer->news();
      if (!news.effects.empty()) return news.effects.front().outcome;
    }
    ADD_FAILURE() << "no verdict";
    return {};
  }
  SequenceId id = 0;
};

TEST(Committer, ARevocationThatEntersTheLedgerBeforeAVerdictIsHeededBeforeTheVerdictCounts) {
  Judged it;
  // It is found by whoever reads the ledger after the verdict was appended.
  it.anchors.revoke_when(sha256("an anchor"), [&] { return !verdicts_of(*it.log).empty(); });
  const EffectOutcome outcome = it.judge();
  EXPECT_FALSE(outcome.released);
  EXPECT_NE(outcome.reason.find("revoked"), std::string::npos) << outcome.reason;
}

TEST(Committer, AVerdictStatesNoMoreOfTheLedgerThanWasHeededBeforeIt) {
  Judged it;
  // Another thread takes in more when this one has just been told that the anchor is in force.
  it.anchors.on_in_force = [&] { it.anchors.taken_in = 10; };
  EXPECT_TRUE(it.judge().released);
  const auto verdicts = verdicts_of(*it.log);
  ASSERT_EQ(verdicts.size(), 1U);
  EXPECT_EQ(verdicts[0].head, 0U);
}

TEST(Committer, HeldTextIsGivenOutWhenItIsValidatedAndNotBefore) {
  Recorded it;
  it.commits.holding = true;
  Request asked = endless(10, 150);
  const core::Answer expected = Served({.kv_blocks = 60}).answer(asked);
  asked.hold_text = true;
  const SequenceId id = it.served.submit(asked);
  it.generate(id, 150);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(it.served->step());
  EXPECT_EQ(it.served.streamed[id], "");
  EXPECT_FALSE(it.served.answers.contains(id));
  it.commits.let_go();
  it.served.finish();
  ASSERT_TRUE(it.served.answers.contains(id));
  expect_same(it.served.answers.at(id), expected);
  EXPECT_EQ(it.served.streamed[id], expected.text);
}

TEST(Committer, TheReceiptOfAHeldAnswerIsGivenOutWithItAndOfARefutedOneNotAtAll) {
  for (const bool hold : {false, true}) {
    for (const bool good : {false, true}) {
      Recorded it({.kv_blocks = 60, .scrub_share = 0});
      it.commits.holding = true;
      Request asked = endless(10, 150);
      asked.hold_text = hold;
      const SequenceId id = it.served.submit(asked);
      bool finished_after_it = false;
      it.served.on_finished = [&](SequenceId) { finished_after_it = it.served.receipts.contains(id); };
      it.generate(id, 150);
      // The engine has nothing to do, so that it waits a little in each step.
      for (int i = 0; i < 50; ++i) ASSERT_TRUE(it.served->step());
      EXPECT_EQ(it.served.receipts.contains(id), !hold);
      if (!good) it.commits.refute(id, 1, "a test says so");
      it.commits.let_go();
      it.served.finish();
      EXPECT_EQ(it.served.validated.contains(id), good);
      EXPECT_EQ(it.served.errors.contains(id), !good);
      EXPECT_EQ(it.served.receipts.contains(id), good || !hold);
      EXPECT_EQ(finished_after_it, good && hold);
    }
  }
}

TEST(Committer, HeldTextComesBlockByBlock) {
  Recorded it({.kv_blocks = 60}, {.run_ahead = 1});
  Request asked = endless(10, 300);
  asked.hold_text = true;
  const SequenceId id = it.served.submit(asked);
  std::set<std::int32_t> validated;
  it.served.on_text = [&](SequenceId) { validated.insert(it.probe().trail(id).validated); };
  it.served.finish();
  // Each block's text comes with its own commit: the first one's with the second commit.
  EXPECT_EQ(validated, (std::set<std::int32_t>{2, 3, 4, 5, 6}));
}

TEST(Committer, AnEffectLeavesWhenAllThatItDependsOnIsValidated) {
  Recorded it;
  it.commits.holding = true;
  const SequenceId id = it.served.submit(endless(10, 150));
  it.generate(id, 20);
  std::vector<EffectOutcome> outcomes;
  std::int32_t validated = 0;
  const auto outcome = [&](const EffectOutcome& o) {
    outcomes.push_back(o);
    validated = it.probe().trail(id).validated;
  };
  ASSERT_TRUE(it.served->request_effect(id, outcome).ok());
  it.generate(id, 100);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(it.served->step());
  EXPECT_TRUE(outcomes.empty()) << "nothing is validated";
  it.commits.let_go();
  it.served.finish();
  ASSERT_EQ(outcomes.size(), 1U);
  EXPECT_TRUE(outcomes[0].released);
  EXPECT_GE(validated, 2) << "the block that its tokens lie in must be validated";
}

TEST(Committer, AnEffectDoesNotWaitForVerdictsThatAreDue) {
  Recorded it({.kv_blocks = 60}, {.reexecute_share = 0, .verdict_delay = std::chrono::hours(1)});
  it.commits.holding = true;
  const SequenceId id = it.served.submit(endless(10, 300));
  it.generate(id, 20);
  it.committer->pages_checked(id, 1, 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // the committer sleeps again
  ASSERT_TRUE(verdicts_of(*it.log).empty());
  const EffectId effect = it.committer->request(id, 1);
  std::vector<EffectNews> effects;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (effects.empty() && std::chrono::steady_clock::now() < deadline)
    effects = it.committer->news().effects;
  ASSERT_EQ(effects.size(), 1U);
  EXPECT_EQ(effects[0].effect, effect);
  EXPECT_TRUE(effects[0].outcome.released);
}

TEST(Committer, AnEffectAskedForAtTheEndDependsOnTheWholeAnswer) {
  Recorded it;
  std::vector<EffectOutcome> outcomes;
  bool was_validated = false;
  it.served.on_finished = [&](SequenceId id) {
    const auto outcome = [&, id](const EffectOutcome& o) {
      outcomes.push_back(o);
      was_validated = it.probe().trail(id).validated == it.probe().trail(id).sealed;
    };
    ASSERT_TRUE(it.served->request_effect(id, outcome).ok());
  };
  it.served.submit(endless(10, 100));
  it.served.finish();
  ASSERT_EQ(outcomes.size(), 1U);
  EXPECT_TRUE(outcomes[0].released);
  EXPECT_FALSE(it.served->request_effect(12345, [](const EffectOutcome&) {}).ok());
}

TEST(Committer, AnEffectIsWithheldWhenAnAnchorIsRevokedOrTheRequestEnds) {
  Recorded it;
  it.commits.holding = true;
  std::map<SequenceId, EffectOutcome> outcomes;
  const SequenceId bound = it.served.submit(anchored_endless(70, 20, 300, 1));
  const SequenceId dropped = it.served.submit(endless(20, 300, 2));
  it.generate(bound, 20);
  for (const SequenceId id : {bound, dropped}) {
    ASSERT_TRUE(it.served->request_effect(id, [&, id](const EffectOutcome& o) { outcomes[id] = o; }).ok());
  }
  it.served->cancel(dropped);
  it.anchors.revoke(sha256("an anchor"));
  it.served.finish();
  ASSERT_EQ(outcomes.size(), 2U);
  for (const auto& [id, outcome] : outcomes) EXPECT_FALSE(outcome.released);
  EXPECT_NE(outcomes.at(bound).reason.find("revoked"), std::string::npos) << outcomes.at(bound).reason;
  EXPECT_NE(outcomes.at(dropped).reason.find("ended"), std::string::npos) << outcomes.at(dropped).reason;
}

TEST(Committer, SampledCommitsAreComputedAgainOnAnotherBackend) {
  Recorded it({.kv_blocks = 60}, {.reexecute_share = 1});
  std::vector<SequenceId> ids;
  for (std::uint64_t seed = 0; seed < 2; ++seed) {
    ids.push_back(it.served.submit(endless(30, 100, seed)));
    ids.push_back(it.served.submit(anchored_endless(70, 30, 100, seed)));
  }
  it.served.finish();
  for (const SequenceId id : ids) {
    ASSERT_TRUE(it.served.validated.contains(id));
    EXPECT_EQ(it.served.validated.at(id).reexecuted, it.served.validated.at(id).commits);
  }
  const std::string mine(backend::select_backend("", 1).value()->name());
  for (const commit::VerdictRecord& verdict : verdicts_of(*it.log)) {
    EXPECT_EQ(verdict.reexecuted_on, other_backend(mine));
    EXPECT_TRUE(mine == "scalar" || verdict.reexecuted_on != mine);
  }
}

TEST(Committer, SampledCommitsForWhichThereIsNoRoomAreValidatedWithoutAndTheirVerdictsSaySo) {
  Recorded it({.kv_blocks = 150, .max_batch = 16}, {.reexecute_share = 0.9999, .salt = sha256("salt")});
  std::vector<SequenceId> ids;
  for (std::uint64_t seed = 0; seed < 16; ++seed) ids.push_back(it.served.submit(endless(70, 5, seed)));
  it.served.finish();
  std::int32_t reexecuted = 0;
  for (const SequenceId id : ids) {
    ASSERT_TRUE(it.served.validated.contains(id));
    reexecuted += it.served.validated.at(id).reexecuted;
  }
  EXPECT_GT(reexecuted, 0);
  EXPECT_LT(reexecuted, 16) << "of the prompts every one is sampled";
  std::size_t stated = 0;
  it.committer.reset();
  for (const commit::VerdictRecord& verdict : verdicts_of(*it.log)) {
    if (!verdict.reexecuted_on.empty()) stated += verdict.commits.size();
  }
  EXPECT_EQ(stated, static_cast<std::size_t>(reexecuted));
}

TEST(Committer, AnswersBeyondTheRunAheadWaitAndAreValidatedAllTheSame) {
  Recorded it({.kv_blocks = 60}, {.run_ahead = 1});
  const SequenceId id = it.served.submit(endless(10, 5));
  it.served.finish();
  ASSERT_TRUE(it.served.validated.contains(id));
  EXPECT_EQ(it.served.validated.at(id).commits, 2);
}

TEST(Committer, ACommitOfACancelledRequestStaysInTheLedger) {
  Recorded it;
  const SequenceId id = it.served.submit(endless(10, 300));
  it.generate(id, 100);
  it.served->cancel(id);
  EXPECT_FALSE(it.served->step());
  it.committer.reset();
  EXPECT_EQ(hashes_of(*it.log, "open").size(), 1U);
  EXPECT_EQ(hashes_of(*it.log, "segment").size(), 1U);
  EXPECT_EQ(hashes_of(*it.log, "answer").size(), 0U);
}

}  // namespace
}  // namespace fieldprint::engine
