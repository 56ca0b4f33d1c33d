#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <span>
#include <vector>

#include "backend/select.h"
#include "base/bounds.h"
#include "base/check.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/median.h"
#include "exact/format.h"
#include "kv/backend_memory.h"
#include "model/model.h"
#include "sampler/sampler.h"
#include "weights/random_model.h"

namespace fieldprint::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct ModelBenchOptions {
  std::string backend;
  std::string shape = "llama-3-8b";
  std::vector<std::string> activations = {"a16"};
  int threads = 0;
  std::vector<std::int32_t> batches;
  std::int32_t tokens = 1024;
  std::int32_t steps = 32;
  std::vector<std::int32_t> prefills;
  bool json = false;
};

/// The shape of a published model, or nothing; the weights will be random.
std::optional<weights::ModelSpec> shape_called(const std::string& name) {
  weights::ModelSpec spec;
  spec.name = name;
  spec.norm_epsilon = 1e-5F;
  if (name == "llama-3-8b") {
    spec.layers = 32;
    spec.dim = 4096;
    spec.hidden = 14336;
    spec.heads = 32;
    spec.kv_heads = 8;
    spec.head_dim = 128;
    spec.vocab = 128256;
    spec.context = 131072;
    spec.score_scale = 0x1.051b3ep-3F;
    return spec;
  }
  if (name == "smollm2-135m") {
    spec.layers = 30;
    spec.dim = 576;
    spec.hidden = 1536;
    spec.heads = 9;
    spec.kv_heads = 3;
    spec.head_dim = 64;
    spec.vocab = 49152;
    spec.context = 8192;
    spec.score_scale = 0x1.715476p-3F;
    return spec;
  }
  return std::nullopt;
}

/// Sequences in blocks of their own, and steps over them.
class ModelLoad {
 public:
  ModelLoad(model::Model& model, std::int32_t batch, std::int32_t longest)
      : model_(model),
        spec_(model.spec()),
        geometry_{spec_.layers, spec_.kv_heads, spec_.head_dim},
        blocks_each_(1 + (longest + exact::kPageTokens - 1) / exact::kPageTokens),
        pool_(geometry_, blocks_each_ * batch,
              kv::backend_memory(model.backend(), blocks_each_ * batch * geometry_.block_bytes())),
        hasher_(kv::backend_page_hasher(model.backend(), pool_)),
        tables_(static_cast<std::size_t>(batch)),
        last_(tables_.size(), 17) {
    for (std::vector<std::int32_t>& table : tables_) {
      for (std::int64_t i = 0; i < blocks_each_; ++i) table.push_back(pool_.acquire());
    }
  }

  /// Seconds of a prefill of every sequence, and of choosing the token after it.
  double prefill(std::int32_t count) {
    std::vector<std::int32_t> tokens;
    for (std::int32_t i = 0; i < count; ++i) {
      tokens.push_back(static_cast<std::int32_t>((1009LL * i + 17) % spec_.vocab));
    }
    std::vector<model::SequenceSlice> slices;
    for (const std::vector<std::int32_t>& table : tables_) slices.push_back(slice(tokens, 0, table));
    return run(slices, {});
  }

  /// Seconds of a step in which every sequence goes on with the token chosen last. Sequence i stands at
  /// positions[i]; with `digests`, blocks that become full are hashed beside the next step, as in the engine.
  double decode(const std::vector<std::int32_t>& positions, bool digests) {
    std::vector<model::SequenceSlice> slices;
    std::vector<kv::BlockId> full;
    for (std::size_t i = 0; i < tables_.size(); ++i) {
      slices.push_back(slice({&last_[i], 1}, positions[i], tables_[i]));
      const core::TokenPlace place = core::BlockLayout{}.place(positions[i]);
      if (digests && place.slot == exact::kPageTokens - 1) {
        full.push_back(tables_[i][static_cast<std::size_t>(place.block)]);
      }
    }
    return run(slices, full);
  }

 private:
  static model::SequenceSlice slice(std::span<const std::int32_t> tokens, std::int32_t first,
                                    const std::vector<std::int32_t>& table) {
    return {.tokens = tokens,
            .first_position = first,
            .blocks = table.data(),
            .ceiling_odds = std::numeric_limits<float>::infinity(),
            .logits = 1};
  }

  double run(std::span<const model::SequenceSlice> slices, std::span<const kv::BlockId> full) {
    const std::vector<model::RowChoice> greedy(slices.size(), {sampler::choice_of({}, 1), {}});
    const Clock::time_point start = Clock::now();
    model_.begin(slices, {pool_.base(), geometry_.block_bytes()}, greedy);
    if (hashing_ != nullptr) kv::block_digests(geometry_, *hashing_, hashed_);
    hashing_.reset();
    const model::StepResult result = model_.finish();
    if (!full.empty()) hashing_ = hasher_(full);
    hashed_ = full.size();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    CHECK(std::ranges::find(result.finite, false) == result.finite.end(), "the random model overflowed");
    last_ = result.tokens;
    return seconds;
  }

  model::Model& model_;
  weights::ModelSpec spec_;
  kv::KvGeometry geometry_;
  std::int64_t blocks_each_;
  kv::BlockPool pool_;
  kv::PageHasher hasher_;
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<std::int32_t> last_;  ///< token of each sequence
  std::unique_ptr<backend::PendingDigests> hashing_;
  std::size_t hashed_ = 0;  ///< blocks
};

/// Weights that every token is multiplied by, the output matrix aside.
double linear_weights(const weights::ModelSpec& s) {
  const double width = double{1} * s.heads * s.head_dim;
  const double kv_width = double{1} * s.kv_heads * s.head_dim;
  return double{1} * s.layers * s.dim * (2 * width + 2 * kv_width + 3.0 * s.hidden);
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

void measure_prefill(model::Model& model, std::int32_t count, std::int32_t steps, nlohmann::json& line) {
  ModelLoad load(model, 1, count);
  load.prefill(count);
  std::vector<double> times;
  for (std::int32_t i = 0; i < steps; ++i) times.push_back(load.prefill(count));
  const double seconds = median(times);
  const weights::ModelSpec& s = model.spec();
  const double tokens = count;
  const double attention = 2.0 * s.layers * s.heads * s.head_dim * tokens * tokens;
  line["prefill_tokens"] = count;
  line["prefill_seconds"] = seconds;
  line["prefill_tokens_per_s"] = tokens / seconds;
  line["tflops"] = (2 * linear_weights(s) * tokens + attention) / seconds * 1e-12;
}

/// Seconds of each of options.steps steps of decoding.
std::vector<double> decode_times(ModelLoad& load, std::vector<std::int32_t> positions, std::int32_t steps,
                                 bool digests) {
  constexpr std::int32_t kWarm = 8;
  std::vector<double> times;
  for (std::int32_t i = 0; i < kWarm + steps; ++i) {
    const double seconds = load.decode(positions, digests);
    if (i >= kWarm) times.push_back(seconds);
    for (std::int32_t& position : positions) ++position;
  }
  return times;
}

void measure_decode(model::Model& model, const ModelBenchOptions& options, std::int32_t batch,
                    nlohmann::json& line) {
  // Spread over a block, so that every step fills as many blocks as the next. Pages that no token was written
  // to are zero: reading them costs what reading any costs.
  std::vector<std::int32_t> positions;
  double tokens = 0;
  for (std::int32_t i = 0; i < batch; ++i) {
    positions.push_back(std::max(options.tokens - i * exact::kPageTokens / batch, 0));
    tokens += positions.back() + 0.5 * options.steps;
  }
  ModelLoad load(model, batch, options.tokens + options.steps + exact::kPageTokens);
  // In turns, as a device's clock changes with its heat.
  constexpr int kPairs = 8;
  std::vector<double> times;
  std::vector<double> costs;
  for (int pair = 0; pair < kPairs; ++pair) {
    std::vector<double> turn[2];
    for (const bool digests : {pair % 2 == 1, pair % 2 == 0}) {
      turn[digests] = decode_times(load, positions, options.steps, digests);
    }
    costs.push_back(mean(turn[true]) / mean(turn[false]) - 1);
    times.insert(times.end(), turn[true].begin(), turn[true].end());
  }
  const double seconds = median(times);
  const weights::ModelSpec& s = model.spec();
  const double pages = tokens * s.layers * s.kv_heads * 2.0 * s.head_dim;
  const double output = double{1} * s.vocab * s.dim;
  line["batch"] = batch;
  line["tokens"] = options.tokens;
  line["step_seconds"] = seconds;
  line["digests_cost"] = median(costs);
  line["digests_costs"] = costs;
  line["decode_tokens_per_s"] = batch / seconds;
  line["tb_per_s"] = (linear_weights(s) + output + pages) / seconds * 1e-12;
}

/// Quantises the inputs of all linear layers alike.
void use_activation(model::Model& model, const std::string& name) {
  const auto format = name == "a8" ? backend::ActivationFormat::kA8 : backend::ActivationFormat::kA16;
  using weights::LinearRole;
  for (const LinearRole role : {LinearRole::kQkv, LinearRole::kAttentionOutput, LinearRole::kGateUp,
                                LinearRole::kDown, LinearRole::kOutput}) {
    model.use_activation(role, format);
  }
}

int bench_model(const ModelBenchOptions& given) {
  ModelBenchOptions options = given;
  if (options.batches.empty() && options.prefills.empty()) options.batches = {1};
  const auto shape = shape_called(options.shape);
  if (!shape) return report(caller_error(fmt::format("there is no shape '{}'", options.shape)));
  auto backend = backend::select_backend(options.backend, options.threads);
  if (!backend) return report(backend.error());
  auto file = weights::random_model(*shape, backend::ActivationFormat::kA16, 1);
  if (!file) return report(file.error());
  std::int32_t most_choices = 1;
  for (const std::int32_t batch : options.batches) most_choices = std::max(most_choices, batch);
  std::int32_t most_tokens = most_choices;
  for (const std::int32_t count : options.prefills) most_tokens = std::max(most_tokens, count);
  model::Model model(**file, **backend, most_tokens, most_choices);
  const auto print = [&](const std::string& activation, const auto& measure) {
    nlohmann::json line = {{"backend", (*backend)->name()},
                           {"shape", options.shape},
                           {"activation", activation},
                           {"steps", options.steps},
                           {"weight_bytes", (*file)->file_bytes()}};
    measure(line);
    fmt::print("{}\n", options.json ? line.dump() : line.dump(2));
    std::fflush(stdout);
  };
  for (const std::string& activation : options.activations) {
    use_activation(model, activation);
    for (const std::int32_t batch : options.batches) {
      print(activation, [&](nlohmann::json& line) { measure_decode(model, options, batch, line); });
    }
    for (const std::int32_t count : options.prefills) {
      print(activation, [&](nlohmann::json& line) { measure_prefill(model, count, options.steps, line); });
    }
  }
  return kDone;
}

}  // namespace

void add_bench_model_command(CLI::App& bench, Action& action) {
  auto options = std::make_shared<ModelBenchOptions>();
  CLI::App* command =
      bench.add_subcommand("model", "a whole model of a published shape, with random weights");
  command->add_option("--backend", options->backend, "scalar, avx2, avx512, amx or cuda");
  command->add_option("--threads", options->threads, "0 = every core")->check(CLI::Range(0, 1024));
  command->add_option("--shape", options->shape, "llama-3-8b or smollm2-135m");
  command->add_option("--activation", options->activations, "of the linear layers: a8, a16 or both, in turns")
      ->delimiter(',')
      ->check(CLI::IsMember({"a8", "a16"}));
  command
      ->add_option("--batch", options->batches, "sequences that decode together; several numbers: in turns")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{1}, bounds::kMaxBatch));
  command->add_option("--tokens", options->tokens, "context of each sequence")->check(CLI::Range(1, 1 << 17));
  command->add_option("--prefill", options->prefills, "prefill of so many tokens, likewise")
      ->delimiter(',')
      ->check(CLI::Range(std::int64_t{1}, bounds::kMaxStepTokens));
  command->add_option("--steps", options->steps, "steps measured, of which the median counts")
      ->check(CLI::Range(1, 10000));
  command->add_flag("--json", options->json, "one JSON object on one line");
  command->callback([&action, options] { action = [options] { return bench_model(*options); }; });
}

}  // namespace fieldprint::cli
