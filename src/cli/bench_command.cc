#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "backend/select.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/median.h"
#include "commit/freeze.h"
#include "engine/engine.h"
#include "exact/format.h"
#include "verify/replay.h"

namespace fieldprint::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct BenchOptions {
  std::string model;
  std::string backend;
  int threads = 0;
  std::int32_t prompt = 512;
  std::int32_t generate = 128;
  std::int32_t batch = 1;
  std::int32_t anchors = 0;
  std::int32_t repeats = 5;
  bool verify = false;
  bool json = false;
};

/// One measured pass.
struct Pass {
  double prefill_seconds = 0;  ///< to the first token of the last sequence
  double decode_seconds = 0;
  std::int64_t decoded = 0;    ///< tokens generated in that time
  std::int64_t kv_blocks = 0;  ///< in use when the first answer ended
  core::Request request;       ///< of the first sequence
  core::Answer answer;
};

/// The sizes of a pass.
struct Load {
  std::int32_t anchors;
  std::int32_t prompt;
  std::int32_t generate;
  std::int32_t batch;
};

/// Fixed tokens, as llama-bench feeds them: what they say does not matter to the time.
core::Request make_request(const Load& load, std::int32_t sequence, std::int32_t vocab) {
  core::Request request;
  request.id = fmt::format("bench-{}", sequence);
  request.layout.anchor_tokens = load.anchors;
  // One token more than the decode steps: the first one comes out of the prefill.
  request.max_tokens = load.generate + 1;
  const std::int32_t preface = 1 + load.anchors;
  const std::int32_t total = load.anchors > 0 ? preface + load.prompt : load.prompt;
  for (std::int32_t position = 0; position < total; ++position) {
    // All begin with the same token, as prompts do, and with the same anchors.
    const std::int32_t own = position == 0 || (load.anchors > 0 && position < preface) ? 0 : sequence;
    request.prompt.push_back((1009 * position + 101 * own + 17) % vocab);
  }
  return request;
}

Result<Pass> measure(const weights::ModelFile& file, const tokenizer::Tokenizer& tokenizer,
                     backend::Backend& backend, const Load& load) {
  Pass pass;
  std::int32_t begun = 0;
  Clock::time_point all_begun;
  std::vector<core::Request> requests;
  std::int64_t blocks = 1;
  for (std::int32_t i = 0; i < load.batch; ++i) {
    requests.push_back(make_request(load, i, file.spec().vocab));
    const core::Request& request = requests.back();
    blocks +=
        request.layout.blocks_for(static_cast<std::int64_t>(request.prompt.size()) + request.max_tokens) + 1;
  }
  std::map<core::SequenceId, bool> seen;
  Error failure;
  engine::Engine* engine = nullptr;
  const engine::Options options{.kv_blocks = blocks, .max_batch = load.batch, .ignore_end = true};
  auto created =
      engine::Engine::create(file, tokenizer, backend, options,
                             {.token =
                                  [&](core::SequenceId id) {
                                    if (begun == load.batch) ++pass.decoded;
                                    if (std::exchange(seen[id], true)) return;
                                    if (++begun == load.batch) all_begun = Clock::now();
                                  },
                              .text = {},
                              .finished =
                                  [&](core::SequenceId, const core::Answer& answer) {
                                    if (pass.kv_blocks == 0) {
                                      pass.kv_blocks = blocks - engine->stats().free_blocks;
                                      pass.answer = answer;
                                    }
                                  },
                              .failed = [&](core::SequenceId, Error error) { failure = std::move(error); }});
  if (!created) return created.error();
  engine = created->get();
  pass.request = requests.front();
  for (core::Request& request : requests) {
    auto id = engine->submit(std::move(request));
    if (!id) return id.error();
  }
  const Clock::time_point start = Clock::now();
  while (engine->step()) continue;
  const Clock::time_point end = Clock::now();
  if (!failure.message.empty()) return failure;
  pass.prefill_seconds = std::chrono::duration<double>(all_begun - start).count();
  pass.decode_seconds = std::chrono::duration<double>(end - all_begun).count();
  return pass;
}

/// Prefill and decode rates of one load, and the time that replaying the first answer takes.
int bench_cpu(const BenchOptions& options, const weights::ModelFile& file,
              const tokenizer::Tokenizer& tokenizer, backend::Backend& backend) {
  const Load load{options.anchors, options.prompt, options.generate, options.batch};
  auto warm =
      measure(file, tokenizer, backend, {0, std::min(32, options.prompt), 4, 1});  // pages the weights in
  if (!warm) return report(warm.error());
  auto pass = measure(file, tokenizer, backend, load);
  if (!pass) return report(pass.error());
  nlohmann::json line = {{"engine", "fieldprint"},
                         {"backend", backend.name()},
                         {"threads", options.threads},
                         {"prompt", options.prompt},
                         {"generate", options.generate},
                         {"batch", options.batch},
                         {"prefill_tokens_per_s", options.batch * options.prompt / pass->prefill_seconds},
                         {"decode_tokens_per_s", static_cast<double>(pass->decoded) / pass->decode_seconds}};
  if (options.verify) {
    const commit::Body body =
        commit::freeze({file.digest(), exact::kCanonVersion, {}}, pass->request, pass->answer);
    verify::Replay replay(body, file, backend);
    auto replayed = replay.run({});
    if (!replayed) return report(replayed.error());
    CHECK(replayed->output == body.output_tokens, "the replay disagrees with the generation");
    const double generated = pass->prefill_seconds + pass->decode_seconds;
    line["generate_seconds"] = generated;
    line["verify_seconds"] = replayed->seconds;
    line["verify_speedup"] = generated / replayed->seconds;
  }
  fmt::print("{}\n", options.json ? line.dump() : line.dump(2));
  return kDone;
}

/// The same contexts with and without shared anchors, taking turns.
int bench_anchors(const BenchOptions& options, const weights::ModelFile& file,
                  const tokenizer::Tokenizer& tokenizer, backend::Backend& backend) {
  const Load without{0, options.prompt, options.generate, options.batch};
  const Load with{options.anchors, options.prompt, options.generate, options.batch};
  std::vector<double> decode_ratio;
  std::vector<double> total_ratio;
  nlohmann::json runs = nlohmann::json::array();
  std::int64_t blocks_without = 0;
  std::int64_t blocks_with = 0;
  for (std::int32_t i = 0; i < options.repeats; ++i) {
    // Who goes first alternates, so that a machine that warms up or slows down favours neither.
    const bool swapped = i % 2 == 1;
    auto first = measure(file, tokenizer, backend, swapped ? with : without);
    if (!first) return report(first.error());
    auto second = measure(file, tokenizer, backend, swapped ? without : with);
    if (!second) return report(second.error());
    const Pass* base = &*(swapped ? second : first);
    const Pass* anchored = &*(swapped ? first : second);
    decode_ratio.push_back(anchored->decode_seconds / base->decode_seconds);
    total_ratio.push_back((anchored->prefill_seconds + anchored->decode_seconds) /
                          (base->prefill_seconds + base->decode_seconds));
    blocks_without = base->kv_blocks;
    blocks_with = anchored->kv_blocks;
    runs.push_back({{"prefill_seconds", {base->prefill_seconds, anchored->prefill_seconds}},
                    {"decode_seconds", {base->decode_seconds, anchored->decode_seconds}}});
  }
  const weights::ModelSpec& spec = file.spec();
  const std::int64_t block_bytes = spec.layers * spec.kv_heads * backend::page_bytes(spec.head_dim);
  const nlohmann::json line = {{"backend", backend.name()},
                               {"anchors", options.anchors},
                               {"context", options.prompt},
                               {"generate", options.generate},
                               {"batch", options.batch},
                               {"decode_time_ratio", median(decode_ratio)},
                               {"total_time_ratio", median(total_ratio)},
                               {"kv_blocks", {blocks_without, blocks_with}},
                               {"kv_bytes", {blocks_without * block_bytes, blocks_with * block_bytes}},
                               {"runs_without_and_with", runs}};
  fmt::print("{}\n", options.json ? line.dump() : line.dump(2));
  return kDone;
}

using Bench = int (*)(const BenchOptions&, const weights::ModelFile&, const tokenizer::Tokenizer&,
                      backend::Backend&);

int run_bench(const BenchOptions& options, Bench bench) {
  auto backend = backend::select_backend(options.backend, options.threads);
  if (!backend) return report(backend.error());
  auto file = weights::ModelFile::open(options.model);
  if (!file) return report(file.error());
  auto tokenizer = tokenizer::Tokenizer::make((*file)->vocabulary());
  if (!tokenizer) return report(tokenizer.error());
  return bench(options, **file, **tokenizer, **backend);
}

void add_load_options(CLI::App& command, BenchOptions& options) {
  command.add_option("-m,--model", options.model, "model file (.fpm)")->required();
  command.add_option("--backend", options.backend, "scalar, avx2, avx512, amx or cuda");
  command.add_option("--threads", options.threads, "0 = every core")->check(CLI::Range(0, 1024));
  command.add_option("--prompt", options.prompt, "tokens of each prompt, without anchors")
      ->check(CLI::Range(2, 1 << 20));
  command.add_option("--generate", options.generate, "decode steps")->check(CLI::Range(1, 1 << 20));
  command.add_option("--batch", options.batch, "sequences")->check(CLI::Range(1, 256));
  command.add_flag("--json", options.json, "one JSON object on one line");
}

}  // namespace

void add_bench_command(CLI::App& app, Action& action) {
  CLI::App* bench = app.add_subcommand("bench", "measure speed");
  bench->require_subcommand(1);
  add_bench_attention_command(*bench, action);
  add_bench_model_command(*bench, action);
  add_bench_ledger_command(*bench, action);
  add_bench_commits_command(*bench, action);

  auto cpu = std::make_shared<BenchOptions>();
  CLI::App* cpu_command = bench->add_subcommand("cpu", "prefill and decode on the CPU");
  add_load_options(*cpu_command, *cpu);
  cpu_command->add_flag("--verify", cpu->verify, "also replay the first answer, as `verify` does");
  cpu_command->callback([&action, cpu] { action = [cpu] { return run_bench(*cpu, bench_cpu); }; });

  auto anchors = std::make_shared<BenchOptions>();
  anchors->prompt = 1024;
  anchors->batch = 8;
  anchors->generate = 64;
  anchors->anchors = 128;
  CLI::App* anchors_command =
      bench->add_subcommand("anchors", "the cost of anchors shared by a batch, against none");
  add_load_options(*anchors_command, *anchors);
  anchors_command->add_option("--anchors", anchors->anchors, "anchor tokens")->check(CLI::Range(1, 1 << 16));
  anchors_command->add_option("--repeats", anchors->repeats, "pairs of runs")->check(CLI::Range(1, 1000));
  anchors_command->callback(
      [&action, anchors] { action = [anchors] { return run_bench(*anchors, bench_anchors); }; });
}

}  // namespace fieldprint::cli
