#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
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
#include "weights/random_model.h"

namespace fieldprint::cli {
namespace {

using Clock = std::chrono::steady_clock;

struct ModelBenchOptions {
  std::string backend;
  std::string shape = "llama-3-8b";
  std::string activation = "a16";
  int threads = 0;
  std::int32_t batch = 1;
  std::int32_t tokens = 1024;
  std::int32_t steps = 32;
  std::int32_t prefill = 0;
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
  ModelLoad(const weights::ModelFile& file, backend::Backend& backend, std::int32_t batch,
            std::int32_t longest, std::int32_t step_tokens)
      : spec_(file.spec()),
        model_(file, backend, step_tokens),
        geometry_{spec_.layers, spec_.kv_heads, spec_.head_dim},
        blocks_each_(1 + (longest + exact::kPageTokens - 1) / exact::kPageTokens),
        pool_(geometry_, blocks_each_ * batch,
              kv::backend_memory(backend, blocks_each_ * batch * geometry_.block_bytes())),
        tables_(static_cast<std::size_t>(batch)) {
    for (std::vector<std::int32_t>& table : tables_) {
      for (std::int64_t i = 0; i < blocks_each_; ++i) table.push_back(pool_.acquire());
    }
  }

  /// Seconds of a step that gives every sequence `count` tokens from position `first`, the logits of the last
  /// included.
  double step(std::int32_t first, std::int32_t count) {
    std::vector<std::int32_t> tokens;
    for (std::int32_t i = 0; i < count; ++i) {
      tokens.push_back(static_cast<std::int32_t>((1009LL * (first + i) + 17) % spec_.vocab));
    }
    std::vector<model::SequenceSlice> slices;
    for (const std::vector<std::int32_t>& table : tables_) {
      slices.push_back({.tokens = tokens,
                        .first_position = first,
                        .blocks = table.data(),
                        .ceiling_odds = std::numeric_limits<float>::infinity(),
                        .logits = 1});
    }
    const Clock::time_point start = Clock::now();
    const std::vector<bool> finite = model_.forward(slices, {pool_.base(), geometry_.block_bytes()});
    CHECK(std::find(finite.begin(), finite.end(), false) == finite.end(), "the random model overflowed");
    const std::int32_t rows = static_cast<std::int32_t>(tables_.size());
    for (std::int32_t row = 0; row < rows; row += model_.max_logit_rows()) {
      model_.logits(row, std::min(model_.max_logit_rows(), rows - row));
    }
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

 private:
  weights::ModelSpec spec_;
  model::Model model_;
  kv::KvGeometry geometry_;
  std::int64_t blocks_each_;
  kv::BlockPool pool_;
  std::vector<std::vector<std::int32_t>> tables_;
};

/// Weights that every token is multiplied by, the output matrix aside.
double linear_weights(const weights::ModelSpec& s) {
  const double width = double{1} * s.heads * s.head_dim;
  const double kv_width = double{1} * s.kv_heads * s.head_dim;
  return double{1} * s.layers * s.dim * (2 * width + 2 * kv_width + 3.0 * s.hidden);
}

void measure_prefill(const ModelBenchOptions& options, const weights::ModelFile& file,
                     backend::Backend& backend, nlohmann::json& line) {
  ModelLoad load(file, backend, 1, options.prefill, options.prefill);
  load.step(0, options.prefill);
  std::vector<double> times;
  for (std::int32_t i = 0; i < options.steps; ++i) times.push_back(load.step(0, options.prefill));
  const double seconds = median(times);
  const weights::ModelSpec& s = file.spec();
  const double tokens = options.prefill;
  const double attention = 2.0 * s.layers * s.heads * s.head_dim * tokens * tokens;
  line["prefill_tokens"] = options.prefill;
  line["prefill_seconds"] = seconds;
  line["prefill_tokens_per_s"] = tokens / seconds;
  line["tflops"] = (2 * linear_weights(s) * tokens + attention) / seconds * 1e-12;
}

void measure_decode(const ModelBenchOptions& options, const weights::ModelFile& file,
                    backend::Backend& backend, nlohmann::json& line) {
  constexpr std::int32_t kWarm = 8;
  // Pages that no token was written to are zero: reading them costs what reading any costs.
  ModelLoad load(file, backend, options.batch, options.tokens + options.steps + kWarm, options.batch);
  std::int32_t position = options.tokens;
  for (std::int32_t i = 0; i < kWarm; ++i) load.step(position++, 1);
  std::vector<double> times;
  for (std::int32_t i = 0; i < options.steps; ++i) times.push_back(load.step(position++, 1));
  const double seconds = median(times);
  const weights::ModelSpec& s = file.spec();
  const double pages = double{1} * options.batch * s.layers * s.kv_heads * position * 2.0 * s.head_dim;
  const double output = double{1} * s.vocab * s.dim;
  line["tokens"] = options.tokens;
  line["step_seconds"] = seconds;
  line["decode_tokens_per_s"] = options.batch / seconds;
  line["tb_per_s"] = (linear_weights(s) + output + pages) / seconds * 1e-12;
}

int bench_model(const ModelBenchOptions& options) {
  const auto shape = shape_called(options.shape);
  if (!shape) return report(caller_error(fmt::format("there is no shape '{}'", options.shape)));
  auto backend = backend::select_backend(options.backend, options.threads);
  if (!backend) return report(backend.error());
  const auto activation =
      options.activation == "a8" ? backend::ActivationFormat::kA8 : backend::ActivationFormat::kA16;
  auto file = weights::random_model(*shape, activation, 1);
  if (!file) return report(file.error());
  nlohmann::json line = {
      {"backend", (*backend)->name()},    {"shape", options.shape},
      {"activation", options.activation}, {"batch", options.prefill > 0 ? 1 : options.batch},
      {"steps", options.steps},           {"weight_bytes", (*file)->file_bytes()}};
  if (options.prefill > 0) {
    measure_prefill(options, **file, **backend, line);
  } else {
    measure_decode(options, **file, **backend, line);
  }
  fmt::print("{}\n", options.json ? line.dump() : line.dump(2));
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
  command->add_option("--activation", options->activation, "of the linear layers: a8 or a16")
      ->check(CLI::IsMember({"a8", "a16"}));
  command->add_option("--batch", options->batch, "sequences that decode together")
      ->check(CLI::Range(std::int64_t{1}, bounds::kMaxBatch));
  command->add_option("--tokens", options->tokens, "context of each sequence")->check(CLI::Range(1, 1 << 17));
  command->add_option("--prefill", options->prefill, "measure the prefill of so many tokens instead")
      ->check(CLI::Range(std::int64_t{0}, bounds::kMaxStepTokens));
  command->add_option("--steps", options->steps, "steps measured, of which the median counts")
      ->check(CLI::Range(1, 10000));
  command->add_flag("--json", options->json, "one JSON object on one line");
  command->callback([&action, options] { action = [options] { return bench_model(*options); }; });
}

}  // namespace fieldprint::cli
