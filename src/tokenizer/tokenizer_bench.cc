#include <benchmark/benchmark.h>

#include <random>
#include <string>

#include "tokenizer/gguf_test_reader.h"
#include "tokenizer/tokenizer.h"

namespace fieldprint::tokenizer {
namespace {

constexpr const char* kModels[] = {"FIELDPRINT_SMOLLM2_GGUF", "FIELDPRINT_GEMMA3_GGUF"};

/// Sentences of common English words with Zipf-like frequencies: 1 MB, the same every time.
std::string prose() {
  constexpr const char* kWords[] = {
      "the",       "of",      "and",       "to",       "a",         "in",       "that",       "was",
      "it",        "with",    "which",     "her",      "had",       "not",      "when",       "there",
      "people",    "little",  "between",   "against",  "thought",   "country",  "government", "something",
      "question",  "morning", "different", "evidence", "Elizabeth", "although", "history",    "necessary",
      "described", "London",  "machine",   "attention"};
  std::mt19937 random(1);
  std::string out;
  int length = 0;
  while (out.size() < 1'000'000) {
    const auto pick = random() % std::size(kWords);
    out += kWords[random() % (pick + 1)];
    const bool ends = ++length > 8 && random() % 8 == 0;
    out += !ends ? (random() % 12 == 0 ? ", " : " ") : random() % 6 == 0 ? ".\n\n" : ". ";
    if (ends) length = 0;
  }
  return out;
}

void encode(benchmark::State& state) {
  const auto tokenizer = testing::from_environment(kModels[state.range(0)]);
  if (!tokenizer) return state.SkipWithError("the environment names no model");
  const std::string text = prose();
  std::size_t tokens = 0;
  for (auto _ : state) {
    const auto ids = tokenizer->encode(text);
    tokens = ids.size();
    benchmark::DoNotOptimize(ids.data());
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(text.size()));
  state.counters["bytes_per_token"] = static_cast<double>(text.size()) / static_cast<double>(tokens);
  state.SetLabel(kModels[state.range(0)]);
}
BENCHMARK(encode)->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

void decode(benchmark::State& state) {
  const auto tokenizer = testing::from_environment(kModels[state.range(0)]);
  if (!tokenizer) return state.SkipWithError("the environment names no model");
  const std::string text = prose();
  const auto ids = tokenizer->encode(text);
  for (auto _ : state) benchmark::DoNotOptimize(tokenizer->decode(ids));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(text.size()));
  state.SetLabel(kModels[state.range(0)]);
}
BENCHMARK(decode)->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

void make(benchmark::State& state) {
  const char* path = std::getenv(kModels[state.range(0)]);
  if (path == nullptr) return state.SkipWithError("the environment names no model");
  const Vocabulary vocabulary = testing::GgufTestReader(path).vocabulary();
  for (auto _ : state) benchmark::DoNotOptimize(Tokenizer::make(vocabulary).ok());
  state.SetLabel(kModels[state.range(0)]);
}
BENCHMARK(make)->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace fieldprint::tokenizer
