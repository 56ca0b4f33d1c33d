#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "backend/cuda/digest.h"
#include "backend/cuda/quantize.h"
#include "backend/cuda/rope.h"
#include "backend/cuda/transfer.h"
#include "backend/kernel_testing.h"

/// Row operations and page digests of Llama 3 8B on the device. Times are of one call, the median over
/// replays of a graph of several one after another; GB/s counts every byte that a call must read or write.
/// Few rows stay in the L2 cache from call to call, as they do in a step.
namespace fieldprint::backend::cuda {
namespace {

constexpr int kCalls = 20;
constexpr int kReplays = 11;
constexpr std::int64_t kDim = 4096;
constexpr std::int64_t kHidden = 14336;
constexpr std::int64_t kVocab = 128256;
constexpr std::int64_t kMostTokens = 8192;
constexpr std::int32_t kHeads = 32;
constexpr std::int32_t kKvHeads = 8;
constexpr std::int32_t kHeadDim = 128;
constexpr std::int64_t kLayers = 32;

/// Device memory of `bytes` bytes: floats in (-1, 1), a mebibyte over and over.
DeviceMemory random_floats(std::int64_t bytes) {
  static const std::vector<float> pattern = [] {
    backend::testing::Random random(1);
    return backend::testing::floats_of(backend::testing::Values::kOrdinary, 1 << 18, random);
  }();
  const std::int64_t size = static_cast<std::int64_t>(pattern.size() * sizeof(float));
  DeviceMemory memory(bytes);
  for (std::int64_t at = 0; at < bytes; at += size) {
    check(cudaMemcpy(memory.data() + at, pattern.data(), static_cast<std::size_t>(std::min(size, bytes - at)),
                     cudaMemcpyHostToDevice),
          "cudaMemcpy");
  }
  return memory;
}

/// Memory for any of the calls.
struct Data {
  DeviceMemory floats = random_floats(kMostTokens * 2 * kHidden * 4);
  DeviceMemory residual = random_floats(kMostTokens * kDim * 4);
  DeviceMemory weight = random_floats(2 * kHidden * 4);
  DeviceMemory q{kMostTokens * 2 * kHidden};
  DeviceMemory scales = random_floats(kMostTokens * kHidden / 32 * 4);
  DeviceMemory sums{kMostTokens * kHidden / 32 * 4};
  DeviceMemory flags{kMostTokens * 4};
  DeviceMemory pool = random_floats((kMostTokens / 64 + 2) * kLayers * kKvHeads * page_bytes(kHeadDim));
  DeviceMemory places = DeviceMemory(3 * kMostTokens * 4);
  PinnedMemory blocks{kMostTokens * 4};
  PinnedMemory digests{kMostTokens / 64 * kLayers * kKvHeads * 32};

  Data() {
    std::vector<std::int32_t> host;
    for (std::int32_t t = 0; t < kMostTokens; ++t) host.push_back(t);
    for (std::int32_t t = 0; t < kMostTokens; ++t) host.push_back(t / 64);
    for (std::int32_t t = 0; t < kMostTokens; ++t) host.push_back(t % 64);
    check(cudaMemcpy(places.data(), host.data(), host.size() * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
    auto* list = reinterpret_cast<std::int32_t*>(blocks.data());
    std::iota(list, list + kMostTokens / 64, 0);
  }
  QuantRows rows(ActivationFormat format, std::int64_t cols) const {
    return {format,
            static_cast<std::int32_t>(cols),
            reinterpret_cast<std::int8_t*>(q.data()),
            as<float>(scales),
            as<std::int32_t>(sums),
            as<float>(sums),
            as<std::int32_t>(flags)};
  }
  template <class T>
  static T* as(const DeviceMemory& memory) {
    return reinterpret_cast<T*>(memory.data());
  }
};

/// Microseconds of one call.
double median_us(const std::function<void(Stream)>& call) {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  for (int i = 0; i < kCalls; ++i) call(stream);
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  cudaGraphExec_t replay = nullptr;
  check(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;
  check(cudaEventCreate(&start), "cudaEventCreate");
  check(cudaEventCreate(&stop), "cudaEventCreate");
  std::vector<float> times;
  for (int i = 0; i < kReplays; ++i) {
    check(cudaEventRecord(start, stream), "cudaEventRecord");
    check(cudaGraphLaunch(replay, stream), "cudaGraphLaunch");
    check(cudaEventRecord(stop, stream), "cudaEventRecord");
    check(cudaEventSynchronize(stop), "cudaEventSynchronize");
    float ms = 0.0F;
    check(cudaEventElapsedTime(&ms, start, stop), "cudaEventElapsedTime");
    times.push_back(ms);
  }
  check(cudaEventDestroy(start), "cudaEventDestroy");
  check(cudaEventDestroy(stop), "cudaEventDestroy");
  check(cudaGraphExecDestroy(replay), "cudaGraphExecDestroy");
  check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
  return static_cast<double>(times[kReplays / 2]) * 1e3 / kCalls;
}

void add(const std::string& name, double bytes, const std::function<void(Stream)>& call) {
  benchmark::RegisterBenchmark(("cuda_rows/" + name).c_str(),
                               [=](benchmark::State& state) {
                                 double us = 0.0;
                                 for (auto _ : state) {
                                   us = median_us(call);
                                   state.SetIterationTime(us * 1e-6);
                                 }
                                 state.counters["GB/s"] = bytes / us * 1e-3;
                               })
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
}

void add_rows(const Data& data, std::int32_t tokens) {
  const float* x = data.as<float>(data.floats);
  const float* weight = data.as<float>(data.weight);
  const std::string rows = "/" + std::to_string(tokens);
  const double narrow = static_cast<double>(tokens * kDim);
  const double wide = static_cast<double>(tokens * kHidden);
  for (const auto& [format, suffix] :
       {std::pair{ActivationFormat::kA8, ".a8"}, std::pair{ActivationFormat::kA8G32, ".a8g32"}}) {
    const QuantRows dim = data.rows(format, kDim);
    const QuantRows hidden = data.rows(format, kHidden);
    const std::string tail = suffix + rows;
    add("norm_quantize" + tail, 5 * narrow, [=](Stream s) {
      norm_quantize({x, nullptr, weight, 1e-5F, dim}, tokens, s);
    });
    add("quantize" + tail, 5 * narrow, [=](Stream s) { quantize({x, dim}, tokens, s); });
    add("gated_quantize" + tail, 9 * wide, [=](Stream s) {
      gated_quantize({x, GateFunction::kSilu, hidden}, tokens, s);
    });
  }
  float* residual = data.as<float>(data.residual);
  add("norm_add" + rows, 12 * narrow, [=](Stream s) {
    norm_add({x, weight, 1e-5F, kDim, residual}, tokens, s);
  });
}

void add_rope(const Data& data, std::int32_t tokens) {
  const float* x = data.as<float>(data.floats);
  auto* places = data.as<std::int32_t>(data.places);
  const std::int64_t layer = kKvHeads * page_bytes(kHeadDim);
  const RopeAppendArgs args{.qkv = x,
                            .heads = kHeads,
                            .kv_heads = kKvHeads,
                            .head_dim = kHeadDim,
                            .q_norm = nullptr,
                            .k_norm = nullptr,
                            .epsilon = 1e-5F,
                            .rope = {x, x, x, x},
                            .positions = places,
                            .blocks = places + kMostTokens,
                            .slots = places + 2 * kMostTokens,
                            .scales = {x, x, x, x, x, x},
                            .kv = {data.pool.data(), kLayers * layer, layer},
                            .q = reinterpret_cast<std::int8_t*>(data.q.data()),
                            .q_step = data.as<std::int32_t>(data.scales),
                            .non_finite = data.as<std::int32_t>(data.flags)};
  add("rope_append/" + std::to_string(tokens), 5.0 * tokens * (kHeads + 2 * kKvHeads) * kHeadDim,
      [=](Stream s) { rope_append(args, tokens, s); });
}

void add_probabilities(const Data& data, std::int32_t rows) {
  const ProbabilitiesArgs args{data.as<float>(data.floats), kVocab, data.as<float>(data.weight),
                               data.as<std::int32_t>(data.q)};
  add("probabilities/" + std::to_string(rows), 8.0 * rows * kVocab,
      [=](Stream s) { probabilities(args, rows, s); });
}

void add_digests(const Data& data, std::int64_t blocks) {
  constexpr std::int64_t kPage = page_bytes(kHeadDim);
  constexpr std::int64_t kPages = kLayers * kKvHeads;
  const PageDigestBatch batch{data.pool.data(),
                              kPages * kPage,
                              kPage,
                              kPages,
                              reinterpret_cast<const std::int32_t*>(data.blocks.data()),
                              blocks * kPages,
                              data.digests.data()};
  add("page_digests/blocks:" + std::to_string(blocks), static_cast<double>(blocks * kPages * kPage),
      [=](Stream s) { page_digests(batch, s); });
}

const bool kRegistered = [] {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return false;
  static const Data& data = *new Data;  // outlives the runtime
  for (const std::int32_t tokens : {1, 16, 64, 256, 8192}) {
    add_rows(data, tokens);
    add_rope(data, tokens);
  }
  for (const std::int32_t rows : {1, 16}) add_probabilities(data, rows);
  for (const std::int64_t blocks : {1, 4, 16, 64, 128}) add_digests(data, blocks);
  return true;
}();

}  // namespace
}  // namespace fieldprint::backend::cuda
