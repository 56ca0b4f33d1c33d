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

/// What recording and validating cost: the same requests with everything on and with everything off, taking
/// turns.
namespace fieldprint::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchOptions {
  std::string model;
  std::string backend;
  int threads = 0;
  std::int32_t prompt = 128;
  std::int32_t generate = 384;
  std::vector<std::int32_t> batches = {1, 8};
  std::int32_t rounds = 7;
  store::DataFolder place;
  bool json = false;
};

/// One run of a batch of requests.
struct Pass {
  double seconds = 0;            ///< to the last token
  double validated_seconds = 0;  ///< until nothing was left to do, validation included
  double cpu_seconds = 0;        ///< of the process, in that time
  std::int64_t tokens = 0;
  std::int64_t scrubbed = 0;
  std::int32_t commits = 0;
  std::int32_t reexecuted = 0;
  commit::Body body;  ///< of one of the answers
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

Result<Pass> measure(const Bench& bench, std::int32_t batch, bool on) {
  const BenchOptions& options = bench.options;
  std::unique_ptr<engine::Committer> committer;
  if (on) {
    auto made = engine::Committer::create(bench.log, bench.anchors, bench.file, bench.backend.name(), {});
    if (!made) return made.error();
    committer = std::move(*made);
  }
  const std::int64_t each = core::BlockLayout{}.blocks_for(options.prompt + options.generate) + 1;
  engine::Options settings{.kv_blocks = batch * each + 1, .max_batch = batch, .ignore_end = true};
  settings.hash_pages = on;
  Pass pass;
  Error failure{};
  Clock::time_point last;
  const engine::Events events{
      .token =
          [&](core::SequenceId) {
            ++pass.tokens;
            last = Clock::now();
          },
      .failed = [&](core::SequenceId, Error error) { failure = std::move(error); },
      .recorded = [&](core::SequenceId, const commit::Receipt& receipt) { pass.body = receipt.body; },
      .validated =
          [&](core::SequenceId, const engine::Validation& validation) {
            pass.commits += validation.commits;
            pass.reexecuted += validation.reexecuted;
          }};
  auto engine =
      engine::Engine::create(bench.file, bench.tokenizer, bench.backend, settings, events, committer.get());
  if (!engine) return engine.error();
  for (std::int32_t i = 0; i < batch; ++i) {
    auto id = (*engine)->submit(make_request(options, i, bench.file.spec().vocab));
    if (!id) return id.error();
  }
  const double cpu = cpu_seconds();
  const Clock::time_point start = Clock::now();
  while ((*engine)->step()) continue;
  const Clock::time_point end = Clock::now();
  if (!failure.message.empty()) return failure;
  pass.cpu_seconds = cpu_seconds() - cpu;
  pass.seconds = seconds_between(start, last);
  pass.validated_seconds = seconds_between(start, end);
  pass.scrubbed = (*engine)->stats().scrubbed_blocks;
  return pass;
}

/// Processor time that computing a whole answer again takes.
Result<double> reexecution_seconds(const Bench& bench, const commit::Body& body) {
  auto other = backend::select_backend(engine::other_backend(bench.backend.name()), 1);
  if (!other) return other.error();
  const double start = cpu_seconds();
  const Status same = engine::compute_again({body, body.output_tokens.size(), false}, bench.file, **other);
  if (!same) return same.error();
  return cpu_seconds() - start;
}

Result<nlohmann::json> bench_batch(const Bench& bench, std::int32_t batch) {
  std::vector<double> cost;
  std::vector<double> cost_validated;
  std::vector<double> cost_cpu;
  std::vector<double> rate_off;
  std::vector<double> rate_on;
  nlohmann::json rounds = nlohmann::json::array();
  Pass last;
  for (std::int32_t round = 0; round < bench.options.rounds; ++round) {
    // Who goes first alternates, so that a machine that warms up or slows down favours neither.
    const bool on_first = round % 2 == 1;
    auto first = measure(bench, batch, on_first);
    if (!first) return first.error();
    auto second = measure(bench, batch, !on_first);
    if (!second) return second.error();
    const Pass& off = on_first ? *second : *first;
    const Pass& on = on_first ? *first : *second;
    cost.push_back(on.seconds / off.seconds - 1);
    cost_validated.push_back(on.validated_seconds / off.validated_seconds - 1);
    cost_cpu.push_back(on.cpu_seconds / off.cpu_seconds - 1);
    rate_off.push_back(static_cast<double>(off.tokens) / off.seconds);
    rate_on.push_back(static_cast<double>(on.tokens) / on.seconds);
    rounds.push_back({{"seconds_off_on", {off.seconds, on.seconds}},
                      {"validated_seconds_off_on", {off.validated_seconds, on.validated_seconds}},
                      {"cpu_seconds_off_on", {off.cpu_seconds, on.cpu_seconds}},
                      {"commits", on.commits},
                      {"reexecuted", on.reexecuted},
                      {"scrubbed_blocks", on.scrubbed}});
    last = on;
  }
  auto again = reexecution_seconds(bench, last.body);
  if (!again) return again.error();
  const engine::Committer::Options defaults;
  const double expected = defaults.reexecute_share * batch * *again / last.cpu_seconds;
  return nlohmann::json{{"batch", batch},
                        {"tokens_per_s_off", median(rate_off)},
                        {"tokens_per_s_on", median(rate_on)},
                        {"cost", median(cost)},
                        {"cost_interval_95", median_interval(cost)},
                        {"cost_until_validated", median(cost_validated)},
                        {"cost_until_validated_interval_95", median_interval(cost_validated)},
                        {"cost_cpu", median(cost_cpu)},
                        {"cost_cpu_interval_95", median_interval(cost_cpu)},
                        {"reexecution_cpu_seconds_of_an_answer", *again},
                        {"reexecution_expected_cost", expected},
                        {"rounds", rounds}};
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
  auto log = store::open_log((*work)->place());
  if (!log) return report(log.error());
  auto authority = engine::Authority::follow((*log)->store(), (*log)->verifier());
  if (!authority) return report(authority.error());
  engine::LedgerAnchors anchors(**authority);
  const Bench bench{options, **file, **tokenizer, **backend, **log, anchors};

  BenchOptions brief = options;  // pages the weights in
  brief.generate = 16;
  if (auto warm = measure({brief, **file, **tokenizer, **backend, **log, anchors}, 1, true); !warm) {
    return report(warm.error());
  }
  nlohmann::json line = {{"benchmark", "commits"},
                         {"model", to_hex((*file)->digest())},
                         {"backend", (*backend)->name()},
                         {"threads", options.threads},
                         {"cpu", cpu_model()},
                         {"cores", std::thread::hardware_concurrency()},
                         {"date", today()},
                         {"prompt", options.prompt},
                         {"generate", options.generate},
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
      ->check(CLI::Range(1, 1 << 20));
  command->add_option("--batches", options->batches, "sequences generated together, one or more sizes")
      ->check(CLI::Range(1, 256));
  command->add_option("--rounds", options->rounds, "pairs of runs; the median counts")
      ->check(CLI::Range(1, 1000));
  command->add_option("--data", options->place.folder,
                      "new folder for the ledger; by default one that goes away");
  command->add_flag("--json", options->json, "one JSON object on one line");
  command->callback([&action, options] { action = [options] { return bench_commits(*options); }; });
}

}  // namespace fieldprint::cli
