#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>

#include "engine/committer_testing.h"

namespace fieldprint::engine {
namespace {

using core::SequenceId;
using testing::anchored_endless;
using testing::endless;
using testing::expect_same;
using testing::Recorded;
using testing::Request;
using testing::Served;

constexpr std::int64_t kMany = 64LL << 20;

std::string swap_path() {
  return (std::filesystem::path(::testing::TempDir()) / ("engine-swap-" + std::to_string(::getpid())))
      .string();
}

/// Five answers that cannot stay in the tight pool together.
std::vector<Request> competing() {
  std::vector<Request> requests;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    requests.push_back(seed % 2 == 0 ? endless(62, 150, seed) : anchored_endless(70, 60, 150, seed));
    if (seed == 4) requests.back().sampling.repetition_penalty = 1.2F;
  }
  return requests;
}

Options tight(std::int64_t bytes = 0, const std::string& file = "") {
  return {.kv_blocks = 14, .max_batch = 5, .swap = {bytes, file}, .scrub_share = 0};
}

std::map<SequenceId, core::Answer> plain_answers(const std::vector<Request>& requests) {
  Served roomy({.kv_blocks = 60, .max_batch = 1, .prefix_cache = false});
  for (const Request& each : requests) roomy.submit(each);
  roomy.finish();
  return roomy.answers;
}

void expect_answers(Served& served, const std::map<SequenceId, core::Answer>& expected) {
  for (const auto& [id, answer] : expected) {
    ASSERT_TRUE(served.answers.contains(id)) << served.errors.at(id).message;
    expect_same(served.answers.at(id), answer);
  }
}

TEST(EngineSwap, PreemptedSequencesComeBackWithTheSameAnswersAndFewerTokensComputed) {
  const std::vector<Request> requests = competing();
  const auto expected = plain_answers(requests);
  Served without(tight());
  for (const Request& each : requests) without.submit(each);
  without.finish();
  EXPECT_GT(without->stats().preemptions, 0);
  for (const std::string& file : {std::string(), swap_path()}) {
    Served with(tight(kMany, file));
    for (const Request& each : requests) with.submit(each);
    with.finish();
    EXPECT_GT(with->stats().preemptions, 0);
    expect_answers(with, expected);
    EXPECT_GT(with->stats().cache.swap.swapped_in, 0U);
    EXPECT_LT(with->stats().computed_tokens, without->stats().computed_tokens);
    EXPECT_EQ(with->stats().damaged_blocks, 0);
    EXPECT_TRUE(with.notices.empty());
    std::int64_t swapped = 0;
    for (const auto& [id, answer] : with.answers) swapped += answer.swapped_tokens;
    EXPECT_GT(swapped, 0);
  }
}

TEST(EngineSwap, AnEvictedPrefixComesBackForTheNextWhoHasIt) {
  const Request asked = endless(500, 20);
  Served served({.kv_blocks = 12, .swap = {kMany, ""}, .scrub_share = 0});
  const core::Answer first = served.answer(asked);
  served.answer(endless(500, 20, 7));
  const std::int64_t before = served->stats().computed_tokens;
  const core::Answer again = served.answer(asked);
  expect_same(again, first);
  EXPECT_EQ(again.cached_tokens, 1 + 7 * 64);
  EXPECT_GT(again.swapped_tokens, 3 * 64);
  EXPECT_EQ(served->stats().computed_tokens - before, 501 + 19 - again.cached_tokens);
}

TEST(EngineSwap, AlteredSwappedBlocksAreFoundComputedAgainAndReported) {
  const std::vector<Request> requests = competing();
  const auto expected = plain_answers(requests);
  for (const std::string& file : {std::string(), swap_path()}) {
    Recorded it(tight(kMany, file));
    for (const Request& each : requests) it.served.submit(each);
    for (std::uint64_t step = 0; it.served->step(); ++step) {
      if (step % 3 == 0) it.probe().damage_swapped(step, static_cast<std::int64_t>(step % 512), 0x40);
    }
    EXPECT_GT(it.served->stats().cache.swap.damaged, 0U);
    EXPECT_EQ(it.served->stats().damaged_blocks,
              static_cast<std::int64_t>(it.served->stats().cache.swap.damaged));
    expect_answers(it.served, expected);
    for (const auto& [id, answer] : expected) EXPECT_TRUE(it.served.validated.contains(id));
    ASSERT_FALSE(it.served.notices.empty());
    EXPECT_NE(it.served.notices.front().find("came back altered"), std::string::npos);
  }
}

TEST(EngineSwap, AFileThatMayNotGrowCostsTimeAndNoAnswer) {
  const std::vector<Request> requests = competing();
  const auto expected = plain_answers(requests);
  ::rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  for (const rlim_t most : {rlim_t{0}, rlim_t{20000}}) {
    Served served(tight(kMany, swap_path()));
    for (const Request& each : requests) served.submit(each);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    ::rlimit small = before;
    small.rlim_cur = most;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    served.finish();
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
    std::signal(SIGXFSZ, handler);
    expect_answers(served, expected);
    EXPECT_EQ(served->stats().cache.swap.failures, 1U);
    ASSERT_EQ(served.notices.size(), 1U);
    EXPECT_NE(served.notices.front().find("cannot write the swap file"), std::string::npos);
  }
}

TEST(EngineSwap, AFileThatCannotBeReadCostsTimeAndNoAnswer) {
  const std::vector<Request> requests = competing();
  const auto expected = plain_answers(requests);
  Served served(tight(kMany, swap_path()));
  for (const Request& each : requests) served.submit(each);
  const std::string name = std::filesystem::path(swap_path()).filename().string() + " (deleted)";
  while (served->step()) {
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code gone;
      const std::string target = std::filesystem::read_symlink(entry.path(), gone).string();
      if (!target.ends_with(name)) continue;
      ASSERT_EQ(::truncate(entry.path().c_str(), 100), 0);
    }
  }
  expect_answers(served, expected);
  EXPECT_GT(served->stats().cache.swap.failures, 0U);
  ASSERT_EQ(served.notices.size(), 1U);
  EXPECT_NE(served.notices.front().find("cannot read the swap file"), std::string::npos);
}

TEST(EngineSwap, AnchorsInForceAreNeverSwapped) {
  Served served({.kv_blocks = 9, .max_batch = 3, .swap = {kMany, ""}, .scrub_share = 0});
  std::vector<SequenceId> ids;
  for (std::uint64_t seed = 1; seed < 4; ++seed)
    ids.push_back(served.submit(anchored_endless(70, 60, 150, seed)));
  const auto active = [&] { return served.answers.size() < ids.size(); };
  for (bool more = served->step(); more && active(); more = served->step()) {
    ASSERT_EQ(served->stats().cache.pinned_blocks, 3) << "the sink and two blocks of anchors";
  }
  EXPECT_GT(served->stats().cache.swap.swapped_out, 0U);
}

TEST(EngineSwap, AreasThatCannotBeAreRefusedByName) {
  const auto backend = backend::select_backend("", 1).value();
  const auto refusal = [&](const Options& options) {
    const auto engine =
        Engine::create(testing::tiny_file(), testing::tiny_tokenizer(), *backend, options, {});
    return engine ? std::string("(accepted)") : engine.error().message;
  };
  EXPECT_NE(refusal({.kv_blocks = 10, .swap = {7, ""}}).find("a block takes"), std::string::npos);
  EXPECT_NE(refusal({.kv_blocks = 10, .swap = {kMany, "/proc/none/swap"}}).find("/proc/none/swap"),
            std::string::npos);
  EXPECT_NE(refusal({.kv_blocks = 10, .swap = {kMany, ""}, .hash_pages = false}).find("without digests"),
            std::string::npos);
}

}  // namespace
}  // namespace fieldprint::engine
