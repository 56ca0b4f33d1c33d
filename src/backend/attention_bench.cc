#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/attention_testing.h"
#include "backend/avx2/attention.h"
#include "backend/avx512/attention.h"
#include "backend/kernel_testing.h"

/// One layer's attention on one thread. bytes: the pages that a step must read. scores: (query, head, token)
/// triples.
namespace fieldprint::backend {
namespace {

using testing::HeadShape;
using testing::PagedAttention;
using testing::SequenceSpec;

struct Kernel {
  const char* name;
  bool (*runs_here)();
  void (*preface)(const AttentionArgs&, std::int64_t, std::int64_t);
  void (*context)(const AttentionArgs&, std::int64_t, std::int64_t);
};

constexpr Kernel kKernels[] = {
    {"avx512", testing::cpu_has_avx512, avx512::attention_preface, avx512::attention_context},
    {"avx2", testing::cpu_has_avx2, avx2::attention_preface, avx2::attention_context}};

std::int64_t pages_of(std::int64_t tokens) { return (tokens + exact::kPageTokens - 1) / exact::kPageTokens; }

void measure(benchmark::State& state, const Kernel& kernel, const HeadShape& shape,
             const std::vector<SequenceSpec>& specs) {
  PagedAttention attention(shape, 0, specs, 1, 2, false);
  std::int64_t scores = 0;
  std::int64_t pages = 0;
  for (std::size_t s = 0; s < specs.size(); ++s) {
    const SequenceSpec& spec = specs[s];
    for (std::int64_t q = 0; q < spec.queries; ++q) scores += spec.first_position + q + 1;
    if (s == 0 || specs[s - 1].anchor_set != spec.anchor_set) pages += 1 + pages_of(spec.anchor_tokens);
    pages += pages_of(spec.first_position + spec.queries - 1 - spec.anchor_tokens);
  }
  for (auto _ : state) {
    attention.run(kernel.preface, kernel.context);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * pages * shape.kv_heads * page_bytes(shape.head_dim));
  state.counters["scores"] = benchmark::Counter(static_cast<double>(scores * shape.heads),
                                                benchmark::Counter::kIsIterationInvariantRate);
}

void add(const Kernel& kernel, const std::string& what, const HeadShape& shape,
         const std::vector<SequenceSpec>& specs) {
  const std::string name = std::string("attention/") + kernel.name + "/" + what + "/" +
                           std::to_string(shape.heads) + "x" + std::to_string(shape.kv_heads) + "x" +
                           std::to_string(shape.head_dim);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    measure(state, kernel, shape, specs);
  })->Unit(benchmark::kMicrosecond);
}

bool add_all() {
  __builtin_cpu_init();
  for (const Kernel& kernel : kKernels) {
    if (!kernel.runs_here()) continue;
    for (const HeadShape& shape : {HeadShape{9, 3, 64}, HeadShape{4, 1, 256}, HeadShape{32, 8, 128}}) {
      for (const std::int32_t context : {1024, 8192}) {
        add(kernel, "decode:" + std::to_string(context), shape, {{1, 2, 0, context, 1}});
      }
      for (const std::int32_t queries : {512, 2048}) {
        add(kernel, "prefill:" + std::to_string(queries), shape, {{1, 2, 0, 0, queries}});
      }
      for (const std::int32_t anchors : {0, 128}) {
        std::vector<SequenceSpec> batch;
        for (std::uint64_t s = 0; s < 8; ++s) batch.push_back({10 + s, 2, anchors, anchors + 1024, 1});
        add(kernel, "batch:8/anchors:" + std::to_string(anchors), shape, batch);
      }
    }
  }
  return true;
}

const bool kAdded = add_all();

}  // namespace
}  // namespace fieldprint::backend
