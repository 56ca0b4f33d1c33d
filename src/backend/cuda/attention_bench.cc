#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backend/cuda/attention.h"
#include "backend/cuda/attention_device_testing.h"
#include "backend/cuda/bandwidth.h"

/// One layer's attention on the device: median over replays of a graph that runs several layers, whose pages
/// together exceed the cache. TB/s counts the pages that a step must read, share is that over what a plain
/// read kernel reaches in the same run, TFLOPS counts 4·D operations for each (query, head, token).
namespace fieldprint::backend::cuda {
namespace {

constexpr std::int32_t kReplays = 21;
constexpr std::int64_t kUncached = 400LL << 20;  // bytes, several times the cache

/// Median milliseconds of a graph of what `enqueue` puts on the stream.
double median_ms(const std::function<void(Stream)>& enqueue) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream), "stream");
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  enqueue(stream);
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph), "capture");
  cudaGraphExec_t replay = nullptr;
  check(cudaGraphInstantiate(&replay, graph, 0), "instantiate");
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;
  check(cudaEventCreate(&start), "event");
  check(cudaEventCreate(&stop), "event");
  std::vector<float> times;
  for (std::int32_t i = 0; i < kReplays + 2; ++i) {
    check(cudaEventRecord(start, stream), "record");
    check(cudaGraphLaunch(replay, stream), "replay");
    check(cudaEventRecord(stop, stream), "record");
    check(cudaEventSynchronize(stop), "synchronise");
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, start, stop), "elapsed");
    if (i >= 2) times.push_back(ms);
  }
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  cudaStreamDestroy(stream);
  std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
  return static_cast<double>(times[kReplays / 2]);
}

/// Bytes a second of the plain read kernel, measured once.
double read_bandwidth() {
  static const double measured = [] {
    constexpr std::int64_t kBytes = 2LL << 30;
    const testing::Buffer data(static_cast<std::size_t>(kBytes), 0x5A);
    const testing::Buffer sink(16, 0);
    const double ms = median_ms(
        [&](Stream stream) { read_all(data.as<void>(), kBytes, sink.as<std::uint32_t>(), stream); });
    return static_cast<double>(kBytes) / ms * 1e3;
  }();
  return measured;
}

struct Batch {
  std::int32_t heads = 32;
  std::int32_t kv_heads = 8;
  std::int32_t head_dim = 128;
  std::int32_t sequences = 1;
  std::int32_t context = 1024;  ///< tokens before the queries, without anchors
  std::int32_t queries = 1;
  std::int32_t anchors = 0;  ///< shared by all sequences
};

/// A pool of random pages for some layers, and a step over it.
class Step {
 public:
  explicit Step(const Batch& batch) : batch_(batch) {
    const std::int64_t page = page_bytes(batch.head_dim);
    const std::int32_t context_blocks = (batch.context + batch.queries + 63) / 64;
    const std::int32_t anchor_blocks = (batch.anchors + 63) / 64;
    const std::int64_t blocks =
        static_cast<std::int64_t>(batch.sequences) * (context_blocks + 1) + anchor_blocks + 1;
    const std::int64_t layer = page * batch.kv_heads;
    layers_ = static_cast<std::int32_t>(std::clamp<std::int64_t>(kUncached / (blocks * layer), 1, 16));
    stride_ = layer * layers_;
    pool_ = std::make_unique<testing::Buffer>(static_cast<std::size_t>(blocks * stride_), 0);
    fill_pool(blocks);
    place(blocks, context_blocks, anchor_blocks);
    make_queries();
  }

  void enqueue(Stream stream) const {
    for (std::int32_t layer = 0; layer < layers_; ++layer) {
      const AttentionArgs args{.heads = batch_.heads,
                               .kv_heads = batch_.kv_heads,
                               .head_dim = batch_.head_dim,
                               .window = 0,
                               .q = q_->as<std::int8_t>(),
                               .q_step = q_step_->as<std::int32_t>(),
                               .scales = {.k_offset = nullptr,
                                          .k_inverse = nullptr,
                                          .q_factor = nullptr,
                                          .v_inverse = nullptr,
                                          .v_scale = ones_->as<float>(),
                                          .sink = ones_->as<float>()},
                               .kv = {pool_->as<std::uint8_t>(), stride_, layer * stride_ / layers_},
                               .sequences = nullptr,
                               .preface_items = nullptr,
                               .context_items = nullptr,
                               .states = nullptr,
                               .out = out_->as<float>(),
                               .anchor_mass = mass_->as<float>()};
      cuda::attention(args, device_plan_, workspace_->as<float>(), stream);
    }
  }

  std::int32_t layers() const { return layers_; }

 private:
  void fill_pool(std::int64_t blocks) {
    std::mt19937 random(1);
    std::vector<std::uint8_t> block(static_cast<std::size_t>(stride_));
    for (std::uint8_t& byte : block) byte = static_cast<std::uint8_t>(random() % 255 + 129);
    for (std::int64_t b = 0; b < blocks; ++b) {
      check(cudaMemcpyAsync(pool_->as<std::uint8_t>() + b * stride_, block.data(), block.size(),
                            cudaMemcpyHostToDevice, nullptr),
            "fill");
    }
    check(cudaDeviceSynchronize(), "fill");
  }

  void place(std::int64_t blocks, std::int32_t context_blocks, std::int32_t anchor_blocks) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(blocks));
    for (std::size_t b = 0; b < order.size(); ++b) order[b] = static_cast<std::int32_t>(b);
    std::shuffle(order.begin(), order.end(), std::mt19937(2));
    auto next = order.begin();
    std::vector<std::int32_t> preface(next, next + 1 + anchor_blocks);
    next += 1 + anchor_blocks;
    std::vector<std::vector<std::int32_t>> tables;
    std::vector<AttentionSequence> sequences;
    for (std::int32_t s = 0; s < batch_.sequences; ++s) {
      // Without anchors each sequence has a sink of its own.
      std::vector<std::int32_t> table = preface;
      if (batch_.anchors == 0) table[0] = *next++;
      table.insert(table.end(), next, next + context_blocks);
      next += context_blocks;
      tables.push_back(std::move(table));
    }
    for (std::int32_t s = 0; s < batch_.sequences; ++s) {
      sequences.push_back({s * batch_.queries, batch_.queries, batch_.anchors + batch_.context,
                           batch_.anchors, tables[static_cast<std::size_t>(s)].data(), 0.0F,
                           std::numeric_limits<float>::infinity()});
    }
    const PlanShape shape{batch_.heads, batch_.kv_heads, batch_.head_dim, 0, multiprocessors()};
    const AttentionWork work = plan_attention_work(sequences, shape);
    plan_ = std::make_unique<testing::Buffer>(work.buffer.data(), work.buffer.size());
    device_plan_ = device_plan(plan_->as<void>(), work, multiprocessors());
    workspace_ =
        std::make_unique<testing::Buffer>(static_cast<std::size_t>(workspace_bytes(shape, work.states)), 0);
  }

  void make_queries() {
    const std::size_t rows = static_cast<std::size_t>(batch_.heads) *
                             static_cast<std::size_t>(batch_.sequences) *
                             static_cast<std::size_t>(batch_.queries);
    const std::size_t dim = static_cast<std::size_t>(batch_.head_dim);
    std::mt19937 random(3);
    std::vector<std::int8_t> q(rows * dim);
    for (std::int8_t& x : q) x = static_cast<std::int8_t>(static_cast<std::int32_t>(random() % 255) - 127);
    constexpr std::int32_t kStep = 300;  // scores then spread over some 20 in log2
    const std::vector<std::int32_t> step(rows, kStep);
    const std::vector<float> ones(static_cast<std::size_t>(batch_.kv_heads) * dim, 1.0F);
    q_ = std::make_unique<testing::Buffer>(q.data(), q.size());
    q_step_ = std::make_unique<testing::Buffer>(step.data(), step.size() * sizeof(std::int32_t));
    ones_ = std::make_unique<testing::Buffer>(ones.data(), ones.size() * sizeof(float));
    out_ = std::make_unique<testing::Buffer>(rows * dim * sizeof(float), 0);
    mass_ = std::make_unique<testing::Buffer>(rows * sizeof(float), 0);
  }

  Batch batch_;
  std::int32_t layers_ = 1;
  std::int64_t stride_ = 0;
  DevicePlan device_plan_{};
  std::unique_ptr<testing::Buffer> pool_;
  std::unique_ptr<testing::Buffer> plan_;
  std::unique_ptr<testing::Buffer> workspace_;
  std::unique_ptr<testing::Buffer> q_;
  std::unique_ptr<testing::Buffer> q_step_;
  std::unique_ptr<testing::Buffer> ones_;
  std::unique_ptr<testing::Buffer> out_;
  std::unique_ptr<testing::Buffer> mass_;
};

void measure(benchmark::State& state, const Batch& batch) {
  if (!testing::has_device()) {
    state.SkipWithError("no CUDA device here");
    return;
  }
  const Step step(batch);
  double seconds = 0.0;
  for (auto _ : state) {
    seconds = median_ms([&](Stream stream) { step.enqueue(stream); }) / 1e3 / step.layers();
    state.SetIterationTime(seconds);
  }
  const double token_bytes = batch.kv_heads * 2.0 * batch.head_dim;
  const double tokens = static_cast<double>(batch.sequences) * (batch.context + batch.queries);
  double scores = 0.0;
  for (std::int32_t q = 0; q < batch.queries; ++q) {
    scores += static_cast<double>(batch.sequences) * (batch.context + q + 1) * batch.heads;
  }
  const double rate = (tokens + batch.anchors) * token_bytes / seconds;
  state.counters["us"] = seconds * 1e6;
  state.counters["TB/s"] = rate / 1e12;
  state.counters["share"] = rate / read_bandwidth();
  state.counters["TFLOPS"] = scores * 4.0 * batch.head_dim / seconds / 1e12;
}

void measure_read(benchmark::State& state) {
  if (!testing::has_device()) {
    state.SkipWithError("no CUDA device here");
    return;
  }
  for (auto _ : state) state.SetIterationTime((2LL << 30) / read_bandwidth());
  state.counters["TB/s"] = read_bandwidth() / 1e12;
}

void add(const std::string& name, const Batch& batch) {
  benchmark::RegisterBenchmark(("cuda_attention/" + name).c_str(),
                               [batch](benchmark::State& state) { measure(state, batch); })
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
}

bool add_all() {
  benchmark::RegisterBenchmark("cuda_read", measure_read)
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
  struct Decode {
    std::int32_t sequences;
    std::int32_t context;
  };
  for (const Decode d : {Decode{64, 8192}, Decode{16, 32768}, Decode{1, 131072}, Decode{256, 1024},
                         Decode{1, 8192}, Decode{4, 8192}}) {
    add("decode:" + std::to_string(d.sequences) + "x" + std::to_string(d.context),
        {.sequences = d.sequences, .context = d.context});
  }
  add("decode:64x8192/anchors:128", {.sequences = 64, .context = 8192, .anchors = 128});
  for (const std::int32_t dim : {64, 80, 96, 256}) {
    add("decode:32x8192/dim:" + std::to_string(dim), {.head_dim = dim, .sequences = 32, .context = 8192});
  }
  add("decode:32x8192/heads:64", {.heads = 64, .sequences = 32, .context = 8192});
  add("decode:32x8192/heads:128", {.heads = 128, .sequences = 32, .context = 8192});
  add("draft:16x8192/queries:8", {.sequences = 16, .context = 8192, .queries = 8});
  for (const Decode d : {Decode{4, 4096}, Decode{1, 16384}, Decode{1, 32768}}) {
    add("prefill:" + std::to_string(d.sequences) + "x" + std::to_string(d.context),
        {.sequences = d.sequences, .context = 0, .queries = d.context});
  }
  for (const std::int32_t context : {8192, 32768, 130'560}) {
    add("prefill:512/after:" + std::to_string(context), {.context = context, .queries = 512});
    add("prefill:512/after:" + std::to_string(context) + "/dim:256/heads:4",
        {.heads = 4, .kv_heads = 1, .head_dim = 256, .context = context, .queries = 512});
  }
  for (const std::int32_t queries : {2048, 8192}) {
    add("prefill:1x" + std::to_string(queries) + "/dim:256/heads:4",
        {.heads = 4, .kv_heads = 1, .head_dim = 256, .context = 0, .queries = queries});
  }
  add("prefill:1x16384/dim:256", {.head_dim = 256, .context = 0, .queries = 16384});
  return true;
}

const bool kAdded = add_all();

}  // namespace
}  // namespace fieldprint::backend::cuda
