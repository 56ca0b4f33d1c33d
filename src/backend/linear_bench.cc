#include <benchmark/benchmark.h>

#include <cstdint>
#include <string>
#include <vector>

#include "backend/amx/linear.h"
#include "backend/avx2/linear.h"
#include "backend/avx512/linear.h"
#include "backend/kernel_testing.h"
#include "backend/scalar/quantize.h"

/// Linear layers of SmolLM2-135M (w4g32, head w8r) and Gemma 3 270M (w8r) on one thread: multiply-adds and
/// bytes of weights a second. Two limits to hold them against: the instruction set's multiply-adds a cycle
/// at many tokens, and read_memory at one.
namespace fieldprint::backend {
namespace {

using testing::Random;

using Linear = void (*)(const LinearArgs&, std::int64_t, std::int64_t);

struct Isa {
  const char* name;
  bool (*supported)();
  Linear linear;
};
constexpr Isa kIsas[] = {{"amx", testing::cpu_has_amx, amx::linear},
                         {"avx512", testing::cpu_has_avx512, avx512::linear},
                         {"avx2", testing::cpu_has_avx2, avx2::linear}};

struct Shape {
  const char* name;
  ActivationFormat activation;
  std::int64_t rows;
  std::int64_t cols;
};
constexpr Shape kShapes[] = {
    {"smol_qkv_w4", ActivationFormat::kA8G32, 960, 576},
    {"smol_out_w4", ActivationFormat::kA8G32, 576, 576},
    {"smol_gate_up_w4", ActivationFormat::kA8G32, 3072, 576},
    {"smol_down_w4", ActivationFormat::kA8G32, 576, 1536},
    {"smol_head_w8a16", ActivationFormat::kA16, 49152, 576},
    {"gemma_gate_up_w8a8", ActivationFormat::kA8, 4096, 640},
    {"gemma_down_w8a16", ActivationFormat::kA16, 640, 2048},
    {"gemma_head_w8a8", ActivationFormat::kA8, 262144, 640},
};

/// A decode step reads each weight once, so the weights must not be found in a cache: copies of this size
/// in all are read in turn.
constexpr std::int64_t kWorkingSet = 128 << 20;

void run_linear(benchmark::State& state, const Isa& isa, const Shape& shape, std::int64_t tokens) {
  if (!isa.supported()) {
    state.SkipWithError("this CPU lacks the instruction set");
    return;
  }
  Random random(1);
  const testing::WeightStorage w =
      testing::random_weight(shape.activation, shape.rows, shape.cols, false, random);
  std::vector<testing::WeightStorage> weights{w};
  if (tokens <= 8) weights.resize(static_cast<std::size_t>(kWorkingSet / w.bytes() + 1), w);
  testing::QuantStorage x(shape.activation, tokens, shape.cols);
  const auto values = testing::floats_of(testing::Values::kOrdinary, tokens * shape.cols, random);
  scalar::quantize({values.data(), x.view()}, 0, tokens);
  std::vector<float> y(static_cast<std::size_t>(tokens * shape.rows));

  std::size_t turn = 0;
  for (auto _ : state) {
    const LinearArgs args{weights[turn].view(), x.view(), static_cast<std::int32_t>(tokens), y.data(),
                          shape.rows,           false};
    isa.linear(args, 0, shape.rows / exact::kTileRows);
    benchmark::ClobberMemory();
    turn = turn + 1 == weights.size() ? 0 : turn + 1;
  }
  const auto calls = static_cast<double>(state.iterations());
  const double macs = static_cast<double>(tokens * shape.rows * shape.cols);
  state.counters["MAC/s"] = benchmark::Counter(calls * macs, benchmark::Counter::kIsRate);
  state.counters["B/s"] =
      benchmark::Counter(calls * static_cast<double>(w.bytes()), benchmark::Counter::kIsRate);
}

/// How fast one thread can read memory that is in no cache.
void read_memory(benchmark::State& state) {
  const std::vector<std::uint64_t> data(std::size_t{kWorkingSet} / sizeof(std::uint64_t), 1);
  for (auto _ : state) {
    std::uint64_t sums[8] = {};
    for (std::size_t i = 0; i < data.size(); i += 8) {
      for (std::size_t lane = 0; lane < 8; ++lane) sums[lane] += data[i + lane];
    }
    benchmark::DoNotOptimize(sums);
  }
  state.counters["B/s"] = benchmark::Counter(
      static_cast<double>(state.iterations()) * static_cast<double>(data.size() * sizeof(std::uint64_t)),
      benchmark::Counter::kIsRate);
}

const bool kRegistered = [] {
  benchmark::RegisterBenchmark("read_memory", read_memory);
  for (const Isa& isa : kIsas) {
    for (const Shape& shape : kShapes) {
      for (const std::int64_t tokens : {1, 8, 512}) {
        // The heads run on the last token of a sequence only.
        if (tokens > 8 && shape.rows > 16384) continue;
        const std::string name = std::string(isa.name) + "/" + shape.name + "/" + std::to_string(tokens);
        benchmark::RegisterBenchmark(name.c_str(), [&isa, &shape, tokens](benchmark::State& state) {
          run_linear(state, isa, shape, tokens);
        });
      }
    }
  }
  return true;
}();

}  // namespace
}  // namespace fieldprint::backend
