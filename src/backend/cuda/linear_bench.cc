#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/cuda/linear.h"
#include "backend/cuda/linear_kernels.h"
#include "backend/cuda/linear_peer.h"
#include "backend/cuda/linear_testing.h"
#include "backend/kernel_testing.h"

/// Linear layers of Llama 3 8B and SmolLM2-135M on the device: bytes of weights a second at few tokens,
/// operations a second (each digit of a16 counts) at many, beside cuBLASLt's int8 product of the same shape,
/// which writes its int32 sums and scales nothing. Times are medians of replays of a graph of calls; the
/// calls go round copies of the weights that are together larger than the L2 cache.
namespace fieldprint::backend::cuda {
namespace {

using backend::testing::Random;

struct Shape {
  const char* name;
  std::int64_t rows;
  std::int64_t cols;
};
constexpr Shape kLlama[] = {{"qkv", 6144, 4096},
                            {"out", 4096, 4096},
                            {"gate_up", 28672, 4096},
                            {"down", 4096, 14336},
                            {"head", 128256, 4096}};
constexpr Shape kSmol[] = {
    {"qkv", 960, 576}, {"out", 576, 576}, {"gate_up", 3072, 576}, {"down", 576, 1536}, {"head", 49152, 576}};

struct Kind {
  const char* name;
  ActivationFormat activation;
};
constexpr Kind kKinds[] = {
    {"w8a8", ActivationFormat::kA8}, {"w8a16", ActivationFormat::kA16}, {"w4a8", ActivationFormat::kA8G32}};

constexpr std::int64_t kWorkingSet = 160 << 20;
constexpr int kReplays = 11;

/// `bytes` bytes of device memory, a random mebibyte over and over.
std::unique_ptr<testing::DeviceArray<std::uint8_t>> random_bytes(std::int64_t bytes) {
  constexpr std::int64_t kPattern = std::int64_t{1} << 20;
  static const std::vector<std::uint8_t> pattern = [] {
    Random random(1);
    std::vector<std::uint8_t> values(kPattern);
    for (std::uint8_t& value : values) value = static_cast<std::uint8_t>(random());
    return values;
  }();
  auto memory = std::make_unique<testing::DeviceArray<std::uint8_t>>(static_cast<std::size_t>(bytes));
  for (std::int64_t at = 0; at < bytes; at += kPattern) {
    check(cudaMemcpy(memory->get() + at, pattern.data(),
                     static_cast<std::size_t>(std::min(kPattern, bytes - at)), cudaMemcpyHostToDevice),
          "cudaMemcpy");
  }
  return memory;
}

/// A layer in device memory: the same random weights in `copies` places.
class Layer {
 public:
  Layer(const Shape& shape, ActivationFormat activation, std::int64_t tokens)
      : weight_{activation == ActivationFormat::kA8G32 ? LinearFormat::kW4G32 : LinearFormat::kW8R,
                activation,
                static_cast<std::int32_t>(shape.rows),
                static_cast<std::int32_t>(shape.cols),
                nullptr,
                nullptr},
        bytes_(repacked_bytes(weight_)),
        tokens_(static_cast<std::int32_t>(tokens)) {
    const bool w4 = activation == ActivationFormat::kA8G32;
    const std::int64_t copies = std::max<std::int64_t>(1, (kWorkingSet + bytes_ - 1) / bytes_);
    for (std::int64_t i = 0; i < copies; ++i) data_.push_back(random_bytes(bytes_));
    const std::int64_t digits = activation == ActivationFormat::kA16 ? 2 : 1;
    const std::int64_t blocks = w4 ? shape.cols / exact::kBlockCols : 1;
    q_ = random_bytes(tokens * digits * shape.cols);
    scale_ = std::make_unique<testing::DeviceArray<float>>(
        std::vector<float>(static_cast<std::size_t>(tokens * blocks), 0.01F));
    y_ = std::make_unique<testing::DeviceArray<float>>(static_cast<std::size_t>(tokens * shape.rows));
  }

  int copies() const { return static_cast<int>(data_.size()); }
  std::int64_t bytes() const { return bytes_; }
  std::int8_t* q() const { return reinterpret_cast<std::int8_t*>(q_->get()); }
  const std::uint8_t* weights(int copy) const { return data_[static_cast<std::size_t>(copy)]->get(); }

  LinearArgs args(int copy, bool accumulate) const {
    PackedWeight w = weight_;
    w.data = weights(copy);
    w.row_scale = scale_floats(copy);
    const QuantRows x{w.activation, w.cols, q(), scale_->get(), nullptr, scale_->get(), nullptr};
    return {w, x, tokens_, y_->get(), w.rows, accumulate};
  }

 private:
  /// Where repack() puts them.
  const float* scale_floats(int copy) const {
    const std::int64_t padded = (weight_.rows + 15) / 16 * 16;
    return reinterpret_cast<const float*>(weights(copy) + padded * weight_.cols);
  }

  PackedWeight weight_;
  std::int64_t bytes_;
  std::int32_t tokens_;
  std::vector<std::unique_ptr<testing::DeviceArray<std::uint8_t>>> data_;
  std::unique_ptr<testing::DeviceArray<std::uint8_t>> q_;
  std::unique_ptr<testing::DeviceArray<float>> scale_;
  std::unique_ptr<testing::DeviceArray<float>> y_;
};

/// Median seconds of one call, of which a graph holds `calls`.
template <typename Call>
double median_seconds(int calls, const Call& call) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  call(0, stream);  // outside the recording: what a first call sets up
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
  for (int i = 0; i < calls; ++i) call(i, stream);
  check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  check(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> milliseconds(kReplays);
  for (int warm = 0; warm < 2; ++warm) check(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
  for (float& ms : milliseconds) {
    check(cudaEventRecord(begin, stream), "cudaEventRecord");
    check(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
    check(cudaEventRecord(end, stream), "cudaEventRecord");
    check(cudaEventSynchronize(end), "cudaEventSynchronize");
    check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  std::nth_element(milliseconds.begin(), milliseconds.begin() + kReplays / 2, milliseconds.end());
  return static_cast<double>(milliseconds[kReplays / 2]) * 1e-3 / calls;
}

/// Calls in a graph: once round the copies, and at least enough for the launch of the graph not to show.
int calls_of(const Layer& layer, std::int64_t tokens) {
  return tokens > 256 ? 3 : std::max(layer.copies(), 24);
}

void report(benchmark::State& state, double seconds, const Layer& layer, double operations) {
  for (auto _ : state) state.SetIterationTime(seconds);
  state.counters["us"] = seconds * 1e6;
  state.counters["TB/s"] = static_cast<double>(layer.bytes()) / seconds * 1e-12;
  state.counters["TOPS"] = operations / seconds * 1e-12;
}

double operations_of(const Shape& shape, ActivationFormat activation, std::int64_t tokens) {
  const double digits = activation == ActivationFormat::kA16 ? 2 : 1;
  return 2.0 * digits * static_cast<double>(shape.rows * shape.cols * tokens);
}

using Run = void (*)(const LinearArgs&, Stream);

/// What is added to the residual accumulates.
bool accumulates(const Shape& shape) {
  return std::string_view(shape.name) == "out" || std::string_view(shape.name) == "down";
}

void run_ours(benchmark::State& state, const Shape& shape, ActivationFormat activation, std::int64_t tokens,
              Run run) {
  if (!testing::has_device()) return state.SkipWithError("no CUDA device");
  const Layer layer(shape, activation, tokens);
  const double seconds = median_seconds(calls_of(layer, tokens), [&](int call, cudaStream_t stream) {
    run(layer.args(call % layer.copies(), accumulates(shape)), stream);
  });
  report(state, seconds, layer, operations_of(shape, activation, tokens));
}

void run_peer(benchmark::State& state, const Shape& shape, std::int64_t tokens) {
  if (!testing::has_device()) return state.SkipWithError("no CUDA device");
  const Layer layer(shape, ActivationFormat::kA8, tokens);
  const testing::DeviceArray<std::int32_t> sums(static_cast<std::size_t>(tokens * shape.rows));
  const auto peer = Int8Peer::create(shape.rows, shape.cols, tokens);
  if (peer == nullptr) return state.SkipWithError("no libcublasLt, or it refuses the shape");
  const double seconds = median_seconds(calls_of(layer, tokens), [&](int call, cudaStream_t stream) {
    peer->run(layer.weights(call % layer.copies()), layer.q(), sums.get(), stream);
  });
  report(state, seconds, layer, operations_of(shape, ActivationFormat::kA8, tokens));
}

void add(const std::string& name, const std::function<void(benchmark::State&)>& function) {
  benchmark::RegisterBenchmark(name.c_str(), function)->Iterations(1)->UseManualTime();
}

void add_shape(const std::string& model, const Shape& shape, std::int64_t tokens) {
  const std::string suffix = model + "/" + shape.name + "/" + std::to_string(tokens);
  for (const Kind& kind : kKinds) {
    add(std::string(kind.name) + "/" + suffix, [&shape, &kind, tokens](benchmark::State& state) {
      run_ours(state, shape, kind.activation, tokens, linear);
    });
  }
  if (tokens <= 16) {
    add("w8a8_tiled/" + suffix, [&shape, tokens](benchmark::State& state) {
      run_ours(state, shape, ActivationFormat::kA8, tokens, linear_w8r_tiled);
    });
    add("w8a8_direct/" + suffix, [&shape, tokens](benchmark::State& state) {
      run_ours(state, shape, ActivationFormat::kA8, tokens, linear_w8r_direct);
    });
    add("w4a8_tiled/" + suffix, [&shape, tokens](benchmark::State& state) {
      run_ours(state, shape, ActivationFormat::kA8G32, tokens, linear_w4g32_tiled);
    });
  }
  if (tokens >= 64 && tokens <= 512) {
    add("w8a8_tiled/" + suffix, [&shape, tokens](benchmark::State& state) {
      run_ours(state, shape, ActivationFormat::kA8, tokens, linear_w8r_tiled);
    });
    add("w8a8_large/" + suffix, [&shape, tokens](benchmark::State& state) {
      run_ours(state, shape, ActivationFormat::kA8, tokens, linear_w8r_large);
    });
  }
  if (tokens >= 16) {
    add("cublasLt/" + suffix, [&shape, tokens](benchmark::State& state) { run_peer(state, shape, tokens); });
  }
}

const bool kRegistered = [] {
  for (const Shape& shape : kSmol) {
    for (const std::int64_t tokens : {1, 8}) add_shape("smol", shape, tokens);
  }
  for (const Shape& shape : kLlama) {
    for (const std::int64_t tokens : {1, 4, 8, 16, 64}) add_shape("llama", shape, tokens);
    if (shape.rows > 100000) continue;  // heads run on the last token of a sequence only
    for (const std::int64_t tokens : {256, 512, 2048, 8192}) add_shape("llama", shape, tokens);
  }
  return true;
}();

}  // namespace
}  // namespace fieldprint::backend::cuda
