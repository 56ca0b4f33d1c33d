#include "engine/ledger_anchors.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "anchor/anchor_testing.h"
#include "engine/anchor_office.h"
#include "engine/committer_testing.h"
#include "store/failing_store_testing.h"
#include "store/stores_testing.h"

namespace fieldprint::engine {
namespace {

using anchor::Anchor;
using anchor::testing::anchor_of;
using anchor::testing::log_key;
using core::SequenceId;
using testing::anchored_endless;
using testing::endless;
using testing::Served;

/// A log of the ledger, as a process of its own has it, and what that knows of anchors.
struct Process {
  explicit Process(const std::string& location) {
    auto failing =
        std::make_unique<store::FailingStore>(*store::open_ledger(location, store::Access::kAppend));
    store = failing.get();
    log = *store::SignedLog::open(std::move(failing), log_key());
    authority = *Authority::follow(log->store(), log->verifier());
  }
  Status revoke(const Anchor& anchor) {
    anchor::ActionRecord record = authority->registry().draft(anchor::Role::kRevoke, anchor.id(), 1000);
    record.reason = "poisoned";
    sign(record, log_key());
    auto entered = enter(*authority, *log, encode(record));
    return entered ? Status() : Status(entered.error());
  }
  store::FailingStore* store = nullptr;
  std::unique_ptr<store::SignedLog> log;
  std::unique_ptr<Authority> authority;
};

/// An engine that answers under anchors of a ledger, which another process shares.
class SharedLedger : public store::WithFolder {
 protected:
  void SetUp() override {
    ours_.emplace(path());
    ASSERT_TRUE(adopt(*ours_->authority, *ours_->log, anchor_, {}).ok());
    theirs_.emplace(path());
    anchors_.emplace(*ours_->authority);
    committer_ = *Committer::create(*ours_->log, *anchors_, testing::tiny_file(), "scalar",
                                    {.reexecute_share = 0, .patience = std::chrono::hours(1)});
    served_.emplace(Options{.kv_blocks = 60, .scrub_share = 0}, testing::tiny_file(),
                    testing::tiny_tokenizer(), committer_.get());
  }
  SequenceId submit_bound() {
    core::Request asked = anchored_endless(70, 20, 400, 1);
    asked.anchors = {anchor_.id()};
    return served_->submit(asked);
  }
  std::int64_t outputs(SequenceId id) { return EngineProbe(**served_).outputs(id); }
  void generate(SequenceId id, std::int64_t tokens) {
    for (int i = 0; i < 5000 && outputs(id) < tokens; ++i) ASSERT_TRUE((*served_)->step());
    ASSERT_GE(outputs(id), tokens);
  }

  const Anchor anchor_ = anchor_of("be kind");
  std::optional<Process> ours_, theirs_;
  std::optional<LedgerAnchors> anchors_;
  std::unique_ptr<Committer> committer_;
  std::optional<Served> served_;
};

TEST_F(SharedLedger, AnotherProcessesRevocationStopsTheNextStep) {
  const SequenceId bound = submit_bound();
  const SequenceId other = served_->submit(endless(20, 200, 2));
  generate(bound, 70);
  ASSERT_TRUE(theirs_->revoke(anchor_).ok());
  const std::int64_t before = outputs(bound);
  // Nothing may be left after the step in which it stops: under load the other has ended before.
  while (!served_->errors.contains(bound) && (*served_)->step()) continue;
  ASSERT_TRUE(served_->errors.contains(bound));
  EXPECT_NE(served_->errors.at(bound).message.find(fmt::format("of its {} tokens", before)),
            std::string::npos)
      << "a token was generated after the revocation: " << served_->errors.at(bound).message;
  served_->finish();
  EXPECT_TRUE(served_->validated.contains(other));
}

TEST_F(SharedLedger, AStepWaitsForNoReadAndHoldsOnlyWhatIsBound) {
  const SequenceId bound = submit_bound();
  const SequenceId other = served_->submit(endless(20, 400, 2));
  generate(bound, 20);
  std::promise<void> answer;
  const std::shared_future<void> answered = answer.get_future().share();
  ours_->store->on_read = [answered] { answered.wait(); };
  ASSERT_TRUE(theirs_->log->append(std::vector<store::Bytes>{store::leaf_of(1)}).ok());
  const std::int64_t before = outputs(bound);
  generate(other, outputs(other) + 150);
  EXPECT_EQ(outputs(bound), before);
  answer.set_value();
  served_->finish();
  for (const SequenceId id : {bound, other}) EXPECT_TRUE(served_->validated.contains(id));
}

TEST_F(SharedLedger, WhatAnotherProcessPromotesIsBoundByTheNextRequest) {
  for (int round = 0; round < 20; ++round) {
    const Anchor anchor = anchor_of("round " + std::to_string(round));
    (void)theirs_->authority->poll();
    ASSERT_TRUE(adopt(*theirs_->authority, *theirs_->log, anchor, {}).ok());
    core::Request asked = anchored_endless(70, 20, 2, 1);
    asked.anchors = {anchor.id()};
    const auto id = (*served_)->submit(asked);
    ASSERT_TRUE(id.ok()) << id.error().message;
  }
  served_->finish();
  EXPECT_EQ(served_->validated.size(), 20U);
}

TEST_F(SharedLedger, AProcessDoesNotReadTheLeavesThatItAppends) {
  std::atomic<std::uint64_t> read = 0;
  ours_->store->on_leaves = [&](std::size_t count) { read += count; };
  const std::uint64_t before = *ours_->log->store().size();
  for (int answer = 0; answer < 20; ++answer) {
    served_->submit(endless(20, 300, 2));
    served_->finish();
  }
  committer_.reset();
  const std::uint64_t appended = *ours_->log->store().size() - before;
  EXPECT_GE(appended, 20 * 6U);
  // The thread that reads may look between a commit and the moment in which the authority is told of it.
  EXPECT_LT(read, appended / 2);
  EXPECT_EQ(ours_->authority->size(), *ours_->log->store().size());
}

}  // namespace
}  // namespace fieldprint::engine
