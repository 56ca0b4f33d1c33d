#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "backend/select.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/median.h"
#include "cli/workplace.h"
#include "engine/authority.h"
#include "engine/committer.h"
#include "engine/engine.h"
#include "engine/ledger_anchors.h"
#include "engine/reexecutor.h"
#include "weights/model_file.h"

/// What recording and validating cost: the same requests by two engines in one process, one with everything
/// on and one with everything off, which take turns.
namespace fieldprint::cli {
namespace {

using Clock = std::chrono::steady_clock;

/// Tokens that each sequence gains in a turn: a block, so that every turn holds one commit of each. Turns are
/// short, because what disturbs a machine changes slowly.
constexpr auto kSlice = static_cast<std::int32_t>(core::kBlockTokens);

struct BenchOptions {
  std::string model;
  std::string backend;
  int threads = 0;
  std::int32_t prompt = 128;
  std::int32_t generate = 385;
  std::vector<std::int32_t> batches = {1, 8};
  std::int32_t rounds = 7;
  store::DataFolder place;
  bool json = false;
};

/// A turn of one engine.
struct Slice {
  double seconds = 0;
  double cpu_seconds = 0;  ///< of the process
};

struct Bench {
  const BenchOptions& options;
  const weights::ModelFile& file;
  const tokenizer::Tokenizer& tokenizer;
  backend::Backend& backend;
  store::SignedLog& log;
  engine::LedgerAnchors& anchors;
};

double seconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

core::Request make_request(const BenchOptions& options, std::int32_t sequence, std::int32_t vocab) {
  core::Request request;
  request.id = fmt::format("bench-{}", sequence);
  request.max_tokens = options.generate;
  for (std::int32_t position = 0; position < options.prompt; ++position) {
    request.prompt.push_back((1009 * position + 101 * (position == 0 ? 0 : sequence) + 17) % vocab);
  }
  return request;
}

/// An engine in the middle of a batch of answers, with everything on or with everything off.
class Side {
 public:
  static Result<std::unique_ptr<Side>> begin(const Bench& bench, std::int32_t batch, bool on) {
    auto side = std::make_unique<Side>();
    if (on) {
      auto made = engine::Committer::create(bench.log, bench.anchors, bench.file, bench.backend.name(), {});
      if (!made) return made.error();
      side->committer_ = std::move(*made);
    }
    const BenchOptions& options = bench.options;
    const std::int64_t each = core::BlockLayout{}.blocks_for(options.prompt + options.generate) + 1;
    engine::Options settings{.kv_blocks = batch * each + 1, .max_batch = batch, .ignore_end = true};
    settings.hash_pages = on;
    auto engine = engine::Engine::create(bench.file, bench.tokenizer, bench.backend, settings, side->events(),
                                         side->committer_.get());
    if (!engine) return engine.error();
    side->engine_ = std::move(*engine);
    for (std::int32_t i = 0; i < batch; ++i) {
      auto id = side->engine_->submit(make_request(options, i, bench.file.spec().vocab));
      if (!id) return id.error();
    }
    side->batch_ = batch;
    return side;
  }

  /// Steps until every sequence has so many tokens.
  Result<Slice> until(std::int32_t tokens) {
    const double cpu = cpu_seconds();
    const Clock::time_point start = Clock::now();
    while (tokens_ < std::int64_t{tokens} * batch_ && failure_.message.empty()) (void)engine_->step();
    const Slice slice{seconds_between(start, Clock::now()), cpu_seconds() - cpu};
    if (!failure_.message.empty()) return failure_;
    return slice;
  }

  /// Steps until nothing is left to do, the last verdict included.
  Result<Slice> finish() {
    const double cpu = cpu_seconds();
    const Clock::time_point start = Clock::now();
    while (engine_->step()) continue;
    if (!failure_.message.empty()) return failure_;
    return Slice{seconds_between(start, Clock::now()), cpu_seconds() - cpu};
  }

  std::int32_t commits() const { return commits_; }
  std::int32_t reexecuted() const { return reexecuted_; }
  std::int64_t scrubbed() const { return engine_->stats().scrubbed_blocks; }
  const commit::Body& body() const { return body_; }

 private:
  engine::Events events() {
    return {.token = [this](core::SequenceId) { ++tokens_; },
            .failed = [this](core::SequenceId, Error error) { failure_ = std::move(error); },
            .recorded = [this](core::SequenceId, const commit::Receipt& receipt) { body_ = receipt.body; },
            .validated =
                [this](core::SequenceId, const engine::Validation& validation) {
                  commits_ += validation.commits;
                  reexecuted_ += validation.reexecuted;
                }};
  }

  std::unique_ptr<engine::Committer> committer_;
  std::int32_t batch_ = 0;
  std::int64_t tokens_ = 0;
  std::int32_t commits_ = 0;
  std::int32_t reexecuted_ = 0;
  commit::Body body_;  ///< of one of the answers
  Error failure_{};
  std::unique_ptr<engine::Engine> engine_;
};

/// Processor time that computing a whole answer again takes.
Result<double> reexecution_seconds(const Bench& bench, const commit::Body& body) {
  auto other = backend::select_backend(engine::other_backend(bench.backend.name()), 1);
  if (!other) return other.error();
  const double start = cpu_seconds();
  const Status same = engine::compute_again({body, body.output_tokens.size(), false}, bench.file, **other);
  if (!same) return same.error();
  return cpu_seconds() - start;
}

/// What the slices of all rounds of a batch size came to.
struct Tally {
  std::vector<double> cost;  ///< of a pair of slices: time on over time off, less 1
  std::vector<double> cost_cpu;
  /// Processor time after the last token, how much more on than off, over that of the slices.
  std::vector<double> ending_cost;
  std::vector<double> rate_off;
  std::vector<double> rate_on;
  std::vector<double> wait;  ///< seconds from a last token to the last verdict
  double cpu_on = 0;         ///< seconds
  nlohmann::json rounds = nlohmann::json::array();
  commit::Body body;
};

/// Answers of both sides, a slice of one after a slice of the other; who goes first alternates.
Status bench_round(const Bench& bench, std::int32_t batch, Tally& tally) {
  std::unique_ptr<Side> sides[2];
  bool on_first = tally.rounds.size() % 2 == 1;
  for (const bool on : {on_first, !on_first}) {
    auto side = Side::begin(bench, batch, on);
    if (!side) return side.error();
    sides[on] = std::move(*side);
    if (auto prompts = sides[on]->until(1); !prompts) return prompts.error();
  }
  double cpu_on = 0;
  nlohmann::json seconds = nlohmann::json::array();
  for (std::int32_t to = 1 + kSlice; to <= bench.options.generate; to += kSlice) {
    Slice slices[2];
    for (const bool on : {on_first, !on_first}) {
      auto slice = sides[on]->until(to);
      if (!slice) return slice.error();
      slices[on] = *slice;
    }
    const auto& [off, on] = slices;
    tally.cost.push_back(on.seconds / off.seconds - 1);
    tally.cost_cpu.push_back(on.cpu_seconds / off.cpu_seconds - 1);
    tally.rate_off.push_back(batch * kSlice / off.seconds);
    tally.rate_on.push_back(batch * kSlice / on.seconds);
    cpu_on += on.cpu_seconds;
    seconds.push_back({off.seconds, on.seconds});
    on_first = !on_first;
  }
  Slice endings[2];
  for (const bool on : {false, true}) {
    auto rest = sides[on]->finish();
    if (!rest) return rest.error();
    endings[on] = *rest;
  }
  tally.wait.push_back(endings[true].seconds);
  tally.ending_cost.push_back((endings[true].cpu_seconds - endings[false].cpu_seconds) / cpu_on);
  tally.cpu_on += cpu_on;
  tally.rounds.push_back({{"slice_seconds_off_on", seconds},
                          {"commits", sides[1]->commits()},
                          {"reexecuted", sides[1]->reexecuted()},
                          {"scrubbed_blocks", sides[1]->scrubbed()}});
  tally.body = sides[1]->body();
  return {};
}

Result<nlohmann::json> bench_batch(const Bench& bench, std::int32_t batch) {
  Tally tally;
  for (std::int32_t round = 0; round < bench.options.rounds; ++round) {
    if (Status status = bench_round(bench, batch, tally); !status) return status.error();
  }
  auto again = reexecution_seconds(bench, tally.body);
  if (!again) return again.error();
  // Of the tokens of the slices; an answer computed again has those of its prompt as well.
  const double tokens = static_cast<double>(tally.cost.size()) * kSlice * batch;
  const double each = *again / (bench.options.prompt + bench.options.generate);
  const double expected = engine::Committer::Options{}.reexecute_share * tokens * each / tally.cpu_on;
  return nlohmann::json{{"batch", batch},
                        {"pairs", tally.cost.size()},
                        {"tokens_per_s_off", median(tally.rate_off)},
                        {"tokens_per_s_on", median(tally.rate_on)},
                        {"cost", median(tally.cost)},
                        {"cost_interval_95", median_interval(tally.cost)},
                        {"cost_cpu", median(tally.cost_cpu)},
                        {"cost_cpu_interval_95", median_interval(tally.cost_cpu)},
                        {"ending_cost", median(tally.ending_cost)},
                        {"seconds_to_last_verdict", median(tally.wait)},
                        {"reexecution_cpu_seconds_of_an_answer", *again},
                        {"reexecution_expected_cost", expected},
                        {"rounds", tally.rounds}};
}

int bench_commits(BenchOptions options) {
  if (options.threads == 0) options.threads = static_cast<int>(std::thread::hardware_concurrency());
  auto backend = backend::select_backend(options.backend, options.threads);
  if (!backend) return report(backend.error());
  auto file = weights::ModelFile::open(options.model);
  if (!file) return report(file.error());
  auto tokenizer = tokenizer::Tokenizer::make((*file)->vocabulary());
  if (!tokenizer) return report(tokenizer.error());
  auto work = Workplace::make(options.place);
  if (!work) return report(work.error());
  auto log = store::open_log(work->place());
  if (!log) return report(log.error());
  auto authority = engine::Authority::follow((*log)->store(), (*log)->verifier());
  if (!authority) return report(authority.error());
  engine::LedgerAnchors anchors(**authority);
  const Bench bench{options, **file, **tokenizer, **backend, **log, anchors};

  BenchOptions brief = options;  // pages the weights in
  brief.generate = 1 + kSlice;
  Tally warm_up;
  const Bench warm{brief, **file, **tokenizer, **backend, **log, anchors};
  if (Status status = bench_round(warm, 1, warm_up); !status) return report(status.error());
  nlohmann::json line = {{"benchmark", "commits"},
                         {"model", to_hex((*file)->digest())},
                         {"backend", (*backend)->name()},
                         {"threads", options.threads},
                         {"cpu", cpu_model()},
                         {"cores", std::thread::hardware_concurrency()},
                         {"date", today()},
                         {"prompt", options.prompt},
                         {"generate", options.generate},
                         {"slice", kSlice},
                         {"scrub_share", engine::Options{}.scrub_share},
                         {"reexecute_share", engine::Committer::Options{}.reexecute_share},
                         {"batches", nlohmann::json::array()}};
  for (const std::int32_t batch : options.batches) {
    auto measured = bench_batch(bench, batch);
    if (!measured) return report(measured.error());
    line["batches"].push_back(std::move(*measured));
  }
  fmt::print("{}\n", options.json ? line.dump() : line.dump(2));
  return kDone;
}

}  // namespace

void add_bench_commits_command(CLI::App& bench, Action& action) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* command = bench.add_subcommand(
      "commits", "the cost of hashing, commits and validation, against generating without them");
  command->add_option("-m,--model", options->model, "model file (.fpm)")->required();
  command->add_option("--backend", options->backend, "scalar, avx2, avx512, amx or cuda");
  command->add_option("--threads", options->threads, "0 = every core")->check(CLI::Range(0, 1024));
  command->add_option("--prompt", options->prompt, "tokens of each prompt")->check(CLI::Range(2, 1 << 20));
  command->add_option("--generate", options->generate, "tokens of each answer")
      ->check(CLI::Range(1 + kSlice, 1 << 20));
  command->add_option("--batches", options->batches, "sequences generated together, one or more sizes")
      ->delimiter(',')
      ->check(CLI::Range(1, 256));
  command
      ->add_option("--rounds", options->rounds,
                   "times that a batch is answered by both; the median of all turns counts")
      ->check(CLI::Range(1, 1000));
  command->add_option("--data", options->place.folder,
                      "new folder for the ledger; by default one that goes away");
  command->add_flag("--json", options->json, "one JSON object on one line");
  command->callback([&action, options] { action = [options] { return bench_commits(*options); }; });
}

}  // namespace fieldprint::cli
