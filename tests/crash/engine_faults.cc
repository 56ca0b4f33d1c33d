#include "crash/engine_faults.h"

#include <algorithm>
#include <random>

#include "anchor/anchor_testing.h"
#include "commit/envelope.h"
#include "engine/committer_testing.h"
#include "store/data_folder.h"

namespace fieldprint::crash {
namespace {

using engine::testing::endless;
using engine::testing::Recorded;
using engine::testing::Served;

const engine::Options kQuiet{.kv_blocks = 60, .scrub_share = 0};

void print_receipt(const commit::Receipt& receipt) {
  const auto leaf = commit::commit_digest(receipt.body);
  const auto stated = store::read_checkpoint(receipt.checkpoint);
  CHECK(leaf.ok() && stated.ok());
  fmt::print("ACK {} {} {} {}\n", receipt.leaf_index, to_hex(*leaf), stated->size, to_hex(stated->root));
  std::fflush(stdout);
}

// The sequence has so many output tokens, or ended before.
void generate(Recorded& it, core::SequenceId id, std::int64_t outputs) {
  while (!it.served.answers.contains(id) && !it.served.errors.contains(id) &&
         it.probe().outputs(id) < outputs) {
    if (!it.served->step()) return;
  }
}

bool same(const core::Answer& a, const core::Answer& b) {
  return a.output == b.output && a.blocks == b.blocks && a.text == b.text && a.anchor_mass == b.anchor_mass &&
         a.finish_reason == b.finish_reason;
}

// Empty if the answer is the right one, or was stopped and said so.
std::string problem_of(Recorded& it, core::SequenceId id, const core::Answer& expected) {
  it.served.finish();
  if (it.served.errors.contains(id)) {
    const Error& error = it.served.errors.at(id);
    return error.kind == ErrorKind::kRefuted ? std::string() : error.message;
  }
  if (!it.served.answers.contains(id)) return "no answer and no error";
  if (!it.served.validated.contains(id)) return "an answer was neither validated nor refuted";
  return same(it.served.answers.at(id), expected) ? "" : "a wrong answer was called validated";
}

// Alters a bit of any sealed block. False if there is none.
bool alter_any(Recorded& it, std::mt19937_64& random) {
  const std::uint64_t which = random();
  const auto byte =
      static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(it.probe().block_bytes()));
  return it.probe().damage_any(which, byte, static_cast<std::uint8_t>(1U << random() % 8));
}

// Empty if what was altered is known: whoever used it had it hashed, and who did not leaves it to the
// scrubber.
std::string unnoticed_since(Recorded& it, std::int64_t damaged_before) {
  it.probe().scrub_all();
  return it.served->stats().damaged_blocks > damaged_before ? "" : "an altered page went unnoticed";
}

}  // namespace

int commit_answers(const store::DataFolder& place, std::uint64_t seed) {
  auto log = store::open_log(place);
  if (!log) {
    fmt::print(stderr, "crash_tool: {}\n", log.error().message);
    return 3;
  }
  engine::testing::FakeAnchors anchors;
  auto committer = engine::Committer::create(
      **log, anchors, engine::testing::tiny_file(), "scalar",
      {.run_ahead = 2, .reexecute_share = 0, .verdict_delay = std::chrono::milliseconds(1)});
  CHECK(committer.ok());
  Served served({.kv_blocks = 60}, engine::testing::tiny_file(), engine::testing::tiny_tokenizer(),
                committer->get());
  for (std::uint64_t i = 0; i < 3; ++i) served.submit(endless(60, 100, seed + i));
  bool going_on = true;
  while (going_on) {
    going_on = served->step();
    for (const auto& [id, receipt] : std::exchange(served.receipts, {})) print_receipt(receipt);
  }
  for (const auto& [id, error] : served.errors) fmt::print(stderr, "crash_tool: {}\n", error.message);
  return served.errors.empty() ? 0 : 3;
}

Tally damage_pages(std::int64_t trials, std::uint64_t seed) {
  Tally tally{.what = "bits altered in resident pages"};
  std::mt19937_64 random(seed);
  const core::Request plain = endless(100, 200);
  const core::Request anchored = engine::testing::anchored_endless(70, 40, 200, 3);
  const core::Answer plain_answer = Served(kQuiet).answer(plain);
  const core::Answer anchored_answer = Served(kQuiet).answer(anchored);
  const auto count = [&](const std::string& problem) {
    ++tally.tried;
    if (problem.empty()) ++tally.answered;
    if (!problem.empty() && tally.problem.empty()) tally.problem = problem;
  };
  for (std::int64_t trial = 0; trial < trials; ++trial) {
    core::Request asked = trial % 3 == 1 ? anchored : plain;
    const core::Answer& expected = trial % 3 == 1 ? anchored_answer : plain_answer;
    asked.hold_text = trial % 4 == 3;
    // In most trials what is altered is used, and only validation looks; in some the scrubber is there first.
    const bool scrubbed = trial % 5 == 0;
    Recorded it(kQuiet);
    const auto answered = [&](bool altered, std::int64_t damaged_before, core::SequenceId id) {
      const std::string problem = problem_of(it, id, expected);
      return problem.empty() && altered ? unnoticed_since(it, damaged_before) : problem;
    };
    const core::SequenceId first = it.served.submit(asked);
    generate(it, first, 10 + static_cast<std::int64_t>(random() % 180));
    bool altered = alter_any(it, random);
    if (scrubbed) it.probe().scrub_all();
    count(answered(altered, 0, first));
    // A block that the answer left in the cache, altered while nobody looks, and taken up again.
    const std::int64_t damaged_before = it.served->stats().damaged_blocks;
    altered = alter_any(it, random);
    if (scrubbed) it.probe().scrub_all();
    std::string problem = answered(altered, damaged_before, it.served.submit(asked));
    // Nothing of it may be left.
    const core::SequenceId last = it.served.submit(asked);
    if (problem.empty()) problem = answered(false, 0, last);
    if (problem.empty() && !it.served.validated.contains(last)) problem = "damage outlived its discovery";
    count(problem);
  }
  return tally;
}

Tally damage_swapped_pages(const std::string& folder, std::int64_t trials, std::uint64_t seed) {
  Tally tally{.what = folder.empty() ? "bits altered in pages swapped to memory"
                                     : "bits altered in pages swapped to a file"};
  std::mt19937_64 random(seed);
  std::vector<core::Request> requests;
  for (std::uint64_t i = 0; i < 4; ++i) requests.push_back(endless(62, 150, seed + i));
  Served plain(kQuiet);
  for (const core::Request& each : requests) plain.submit(each);
  plain.finish();
  std::uint64_t found = 0;
  const kv::SwapOptions area{16LL << 20, folder.empty() ? "" : folder + "/swap"};
  while (tally.tried < trials) {
    Recorded it({.kv_blocks = 9, .max_batch = 4, .swap = area, .scrub_share = 0});
    for (const core::Request& each : requests) it.served.submit(each);
    std::int64_t altered = 0;
    while (it.served->step()) {
      if (random() % 8 != 0 || tally.tried + altered == trials) continue;
      const auto byte = static_cast<std::int64_t>(random() % 512);
      altered +=
          it.probe().damage_swapped(random(), byte, static_cast<std::uint8_t>(1U << random() % 8)) ? 1 : 0;
    }
    std::string problem = altered == 0 ? "nothing was swapped" : "";
    for (const auto& [id, answer] : plain.answers) {
      const auto given = it.served.answers.find(id);
      if (given == it.served.answers.end() || !same(given->second, answer)) problem = "a wrong answer";
      if (!it.served.validated.contains(id)) problem = "an answer was not validated";
    }
    found += it.served->stats().cache.swap.damaged;
    tally.tried += std::max<std::int64_t>(altered, 1);
    tally.answered += problem.empty() ? altered : 0;
    if (!problem.empty() && tally.problem.empty()) tally.problem = problem;
  }
  if (found == 0) tally.problem = "no altered block ever came back";
  if (found == 0) tally.answered = 0;
  return tally;
}

Tally turn_clocks() {
  Tally tally{.what = "clocks that go back or jump around an anchor's expiry"};
  anchor::testing::Office office;
  const auto count = [&](bool as_it_must, const char* what, std::int64_t time) {
    ++tally.tried;
    if (as_it_must) ++tally.answered;
    if (!as_it_must && tally.problem.empty()) tally.problem = fmt::format("{} at {}", what, time);
  };
  anchor::Terms terms;
  terms.not_before = 2000;
  terms.not_after = 5000;
  const auto anchor = anchor::testing::anchor_of("be kind", terms);
  const auto other = anchor::testing::anchor_of("be brief");
  CHECK(office.set(anchor::testing::shared_policy(), {"ada", "alf"}).ok());
  office.promote(anchor);
  const auto admitted = [&](std::int64_t time) {
    return office.registry.admit(anchor.id(), {.tenant = "", .model_digest = {}, .time = time}).ok();
  };
  const auto going_on = [&](std::int64_t time) { return office.registry.in_force(anchor.id(), time).ok(); };
  for (std::int64_t time = 0; time < 8000; time += 50) {
    const bool valid = time >= 2000 && time < 5000;
    if (time == 5000) continue;  // the last second itself is the registry's own test's business
    count(admitted(time) == valid, "whether it may begin", time);
    if (time >= 2000) count(going_on(time) == valid, "whether it may go on", time);
  }
  // A record of 6000 shows that the anchor is over. No clock brings it back.
  office.now = 6000;
  office.promote(other);
  for (const std::int64_t time : {-1'000'000L, 0L, 1000L, 2000L, 3000L, 4999L, 5999L, 6000L, 1L << 40}) {
    count(!admitted(time), "an expired anchor begins", time);
    count(!going_on(time), "an expired anchor goes on", time);
  }
  return tally;
}

}  // namespace fieldprint::crash
