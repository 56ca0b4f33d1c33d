#include "engine/reexecutor.h"

#include <gtest/gtest.h>

#include "engine/committer_testing.h"

namespace fieldprint::engine {
namespace {

using testing::Recorded;
using testing::tiny_file;

TEST(Reexecutor, AHistoryIsRefutedByTheFirstThingThatDiffers) {
  Recorded it;
  const core::SequenceId id = it.served.submit(testing::anchored_endless(70, 30, 100, 1));
  it.served.finish();
  const commit::Body& body = it.served.receipts.at(id).body;
  const auto scalar = backend::select_backend("scalar", 1).value();
  const auto outcome = [&](auto&& change) {
    History history{body, body.output_tokens.size(), true};
    change(history);
    const Status status = compute_again(history, tiny_file(), *scalar);
    if (status) return std::string("(the same)");
    EXPECT_EQ(status.error().kind, ErrorKind::kRefuted);
    return status.error().message;
  };
  EXPECT_EQ(outcome([](History&) {}), "(the same)");
  const auto names = [](const std::string& message, const char* part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  };
  names(outcome([](History& h) { h.body.output_tokens.back() = 3 + h.body.output_tokens.back() % 20; }),
        "output token 99 is");
  names(outcome([](History& h) { h.body.kv_blocks[2].digest[0] ^= 1; }), "KV of block 2");
  names(outcome([](History& h) { h.body.anchor_mass[0] += 0.5F; }), "mass");
  // What is not stated is not compared.
  EXPECT_EQ(outcome([](History& h) {
              h.outputs -= 1;
              h.body.output_tokens.back() = 3;
            }),
            "(the same)");
}

TEST(Reexecutor, WhatNobodyWaitsForIsNotComputedAndCountsUntilItsOutcome) {
  std::mutex mutex;
  std::condition_variable changed;
  bool go = false;
  std::map<std::int32_t, Status> outcomes;
  const auto wanted = [&](commit::Protocol::Commit commit) {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return go; });
    return commit.number == 1;
  };
  const auto done = [&](commit::Protocol::Commit commit, const Status& outcome) {
    const std::lock_guard lock(mutex);
    outcomes.emplace(commit.number, outcome);
    changed.notify_all();
  };
  Recorded it;
  const core::SequenceId id = it.served.submit(testing::endless(30, 10));
  it.served.finish();
  History wrong{it.served.receipts.at(id).body, 10, false};
  wrong.body.kv_blocks[0].digest[0] ^= 1;
  Reexecutor reexecutor(tiny_file(), backend::select_backend("scalar", 1).value(), wanted, done);
  reexecutor.add({id, 0}, wrong);
  reexecutor.add({id, 1}, wrong);
  EXPECT_EQ(reexecutor.outstanding(), 2);
  std::unique_lock lock(mutex);
  go = true;
  changed.notify_all();
  changed.wait(lock, [&] { return outcomes.size() == 2; });
  EXPECT_EQ(outcomes.at(0).error().kind, ErrorKind::kEnvironment);
  EXPECT_EQ(outcomes.at(1).error().kind, ErrorKind::kRefuted);
  lock.unlock();
  while (reexecutor.outstanding() > 0) std::this_thread::yield();
}

TEST(Reexecutor, TheOtherBackendSharesTheFewestKernels) {
  const std::vector<std::string> all = backend::available_backends();
  const auto has = [&](const char* name) { return std::ranges::find(all, name) != all.end(); };
  for (const char* wide : {"amx", "avx512"}) EXPECT_EQ(other_backend(wide), has("avx2") ? "avx2" : "scalar");
  EXPECT_NE(other_backend("avx2"), "avx2");
  EXPECT_NE(other_backend("cuda"), "cuda");
}

}  // namespace
}  // namespace fieldprint::engine
