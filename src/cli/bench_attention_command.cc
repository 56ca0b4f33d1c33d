#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "backend/select.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/median.h"
#include "exact/format.h"
#include "model/workspace.h"
#include "sampler/philox.h"
#include "weights/kv_scales.h"

namespace fieldprint::cli {
namespace {

using Clock = std::chrono::steady_clock;
using model::DeviceArray;

struct AttentionBenchOptions {
  std::string backend;
  int threads = 0;
  std::int32_t heads = 32;
  std::int32_t kv_heads = 8;
  std::int32_t head_dim = 128;
  std::int32_t batch = 1;
  std::int32_t tokens = 8192;
  std::int32_t queries = 1;
  std::int32_t anchors = 0;
  std::int32_t repeats = 30;
  std::int64_t cache_mib = 256;
  bool json = false;
};

constexpr std::int32_t kStep =
    128;  ///< of queries: scores then differ by some units of log2, as a model's do

/// Bytes without a pattern, none of them -128, which no page holds.
std::vector<std::uint8_t> random_bytes(std::int64_t count, std::uint64_t seed) {
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < bytes.size(); i += 8) {
    const std::uint64_t random = sampler::philox(seed, i / 8);
    std::memcpy(bytes.data() + i, &random, std::min<std::size_t>(8, bytes.size() - i));
  }
  std::replace(bytes.begin(), bytes.end(), std::uint8_t{0x80}, std::uint8_t{0});
  return bytes;
}

/// One load: `batch` sequences whose last `queries` of `tokens` positions attend to all before them, over
/// enough layers of pages that no call finds its pages in a cache.
class AttentionLoad {
 public:
  AttentionLoad(backend::Backend& backend, const AttentionBenchOptions& options, std::int32_t anchors)
      : backend_(backend),
        options_(options),
        anchors_(anchors),
        anchor_blocks_((anchors + 63) / 64),
        context_blocks_((options.tokens - 1 + 63) / 64),
        layer_bytes_(options.kv_heads * backend::page_bytes(options.head_dim)),
        blocks_(1 + anchor_blocks_ + std::int64_t{options.batch} * context_blocks_),
        layers_(std::max<std::int64_t>(
            1, ((options.cache_mib << 20) + blocks_ * layer_bytes_ - 1) / (blocks_ * layer_bytes_))),
        rows_(std::int64_t{options.batch} * options.queries),
        pool_(backend, blocks_ * layers_ * layer_bytes_),
        q_(backend, rows_ * options.heads * options.head_dim),
        q_step_(backend, rows_ * options.heads),
        scales_(backend, options.kv_heads * weights::kv_scale_columns(options.head_dim)),
        states_(backend, rows_ * options.heads * 2 * backend::attention_state_floats(options.head_dim)),
        out_(backend, rows_ * options.heads * options.head_dim),
        mass_(backend, rows_ * options.heads) {
    fill();
    for (std::int32_t s = 0; s < options.batch; ++s) {
      std::vector<std::int32_t>& table = tables_.emplace_back();
      for (std::int64_t b = 0; b < 1 + anchor_blocks_; ++b) table.push_back(static_cast<std::int32_t>(b));
      for (std::int64_t b = 0; b < context_blocks_; ++b) {
        table.push_back(static_cast<std::int32_t>(1 + anchor_blocks_ + b * options.batch + s));
      }
    }
    for (std::int32_t s = 0; s < options.batch; ++s) {
      sequences_.push_back({s * options.queries, options.queries, anchors + options.tokens - options.queries,
                            anchors, tables_[static_cast<std::size_t>(s)].data(), 0.0F,
                            std::numeric_limits<float>::infinity()});
    }
    backend_.plan_attention(sequences_, options.heads, options.kv_heads);
  }

  /// Seconds of a call: the median over rounds of several calls each, so that a call's own length is what
  /// counts.
  double seconds() {
    call(0);
    backend_.synchronize();
    std::int64_t calls = 1;
    for (double round = 0; round < 0.02 && calls < 4096; calls *= 2) round = time(calls);
    std::vector<double> times;
    for (std::int32_t i = 0; i < options_.repeats; ++i)
      times.push_back(time(calls) / static_cast<double>(calls));
    return median(std::move(times));
  }

  /// Bytes of pages that the queries see, each once; anchors and sink once for the batch.
  std::int64_t page_bytes_seen() const {
    return options_.kv_heads * 2 * std::int64_t{options_.head_dim} *
           (1 + anchors_ + std::int64_t{options_.batch} * (options_.tokens - 1));
  }

 private:
  void fill() {
    const std::vector<std::uint8_t> block = random_bytes(layers_ * layer_bytes_, 1);
    for (std::int64_t b = 0; b < blocks_; ++b) {
      backend_.upload(pool_.data() + b * layers_ * layer_bytes_, block.data(), layers_ * layer_bytes_);
    }
    std::vector<std::uint8_t> q(static_cast<std::size_t>(q_.bytes()));
    for (std::size_t i = 0; i < q.size(); ++i)
      q[i] = static_cast<std::uint8_t>(sampler::philox(2, i) % 255 + 129);
    backend_.upload(q_.data(), q.data(), q_.bytes());
    const std::vector<std::int32_t> steps(static_cast<std::size_t>(rows_ * options_.heads), kStep);
    backend_.upload(q_step_.data(), steps.data(), q_step_.bytes());
    const std::vector<float> scales =
        weights::kv_scale_section(weights::unit_kv_calibration(options_.kv_heads, options_.head_dim), 1.0F);
    backend_.upload(scales_.data(), scales.data(), scales_.bytes());
  }

  void call(std::int64_t layer) {
    backend_.attention({.heads = options_.heads,
                        .kv_heads = options_.kv_heads,
                        .head_dim = options_.head_dim,
                        .window = 0,
                        .q = q_.data(),
                        .q_step = q_step_.data(),
                        .scales = weights::kv_scales_of(scales_.data(), options_.kv_heads, options_.head_dim),
                        .kv = {pool_.data(), layers_ * layer_bytes_, layer * layer_bytes_},
                        .sequences = nullptr,
                        .preface_items = nullptr,
                        .context_items = nullptr,
                        .states = states_.data(),
                        .out = out_.data(),
                        .anchor_mass = mass_.data()});
  }

  double time(std::int64_t calls) {
    const Clock::time_point start = Clock::now();
    for (std::int64_t i = 0; i < calls; ++i) call(i % layers_);
    backend_.synchronize();
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  backend::Backend& backend_;
  const AttentionBenchOptions& options_;
  std::int32_t anchors_;
  std::int64_t anchor_blocks_;
  std::int64_t context_blocks_;
  std::int64_t layer_bytes_;
  std::int64_t blocks_;
  std::int64_t layers_;
  std::int64_t rows_;
  DeviceArray<std::uint8_t> pool_;
  DeviceArray<std::int8_t> q_;
  DeviceArray<std::int32_t> q_step_;
  DeviceArray<float> scales_;
  DeviceArray<float> states_;
  DeviceArray<float> out_;
  DeviceArray<float> mass_;
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<backend::AttentionSequence> sequences_;
};

/// Multiplications and additions of both products over the positions that each query sees.
double operations(const AttentionBenchOptions& options) {
  const double first = options.tokens - options.queries + 1;
  const double seen =
      (first + options.tokens) / 2 * options.queries + double(options.anchors) * options.queries;
  return 4.0 * seen * options.batch * options.heads * options.head_dim;
}

int bench_attention(const AttentionBenchOptions& options) {
  if (options.queries > options.tokens) {
    return report(
        caller_error(fmt::format("--queries {} is more than --tokens {}", options.queries, options.tokens)));
  }
  if (options.heads % options.kv_heads != 0 || options.head_dim % exact::kBlockCols != 0) {
    return report(caller_error("--heads must be a multiple of --kv-heads, and --head-dim of 32"));
  }
  auto backend = backend::select_backend(options.backend, options.threads);
  if (!backend) return report(backend.error());
  AttentionLoad load(**backend, options, options.anchors);
  const double seconds = load.seconds();
  nlohmann::json line = {{"backend", (*backend)->name()},
                         {"heads", options.heads},
                         {"kv_heads", options.kv_heads},
                         {"head_dim", options.head_dim},
                         {"batch", options.batch},
                         {"tokens", options.tokens},
                         {"queries", options.queries},
                         {"anchors", options.anchors},
                         {"repeats", options.repeats},
                         {"us", seconds * 1e6},
                         {"tb_per_s", static_cast<double>(load.page_bytes_seen()) / seconds * 1e-12},
                         {"tflops", operations(options) / seconds * 1e-12}};
  fmt::print("{}\n", options.json ? line.dump() : line.dump(2));
  return kDone;
}

}  // namespace

void add_bench_attention_command(CLI::App& bench, Action& action) {
  auto options = std::make_shared<AttentionBenchOptions>();
  CLI::App* command = bench.add_subcommand("attention", "one layer's attention over random pages");
  command->add_option("--backend", options->backend, "scalar, avx2, avx512, amx or cuda");
  command->add_option("--threads", options->threads, "0 = every core")->check(CLI::Range(0, 1024));
  command->add_option("--heads", options->heads, "query heads")->check(CLI::Range(1, 256));
  command->add_option("--kv-heads", options->kv_heads, "KV heads, a divisor of --heads")
      ->check(CLI::Range(1, 256));
  command->add_option("--head-dim", options->head_dim, "head size, a multiple of 32")
      ->check(CLI::Range(32, 256));
  command->add_option("--batch", options->batch, "sequences")->check(CLI::Range(1, 4096));
  command->add_option("--tokens", options->tokens, "positions of each sequence, without anchors")
      ->check(CLI::Range(2, 1 << 20));
  command->add_option("--queries", options->queries, "of each sequence, the last ones; 1 is decoding")
      ->check(CLI::Range(1, 1 << 17));
  command->add_option("--anchors", options->anchors, "anchor tokens that the batch shares")
      ->check(CLI::Range(0, 1 << 16));
  command->add_option("--repeats", options->repeats, "rounds, of which the median counts")
      ->check(CLI::Range(1, 1000));
  command
      ->add_option("--pages-mib", options->cache_mib,
                   "least memory of pages that calls go round, several times the device's last cache")
      ->check(CLI::Range(1, 1 << 20));
  command->add_flag("--json", options->json, "one JSON object on one line");
  command->callback([&action, options] { action = [options] { return bench_attention(*options); }; });
}

}  // namespace fieldprint::cli
