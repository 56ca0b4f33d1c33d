#include <benchmark/benchmark.h>

#include <cstdint>
#include <vector>

#include "backend/kernel_testing.h"
#include "backend/sha_ni/digest.h"
#include "base/sha256.h"

/// SHA-256 of the pages of 16 blocks of SmolLM2 on one thread, by OpenSSL and by our kernel.
namespace fieldprint::backend {
namespace {

constexpr std::size_t kPages = 16 * 90;
constexpr std::size_t kPageBytes = 8192;

std::vector<std::uint8_t> pool() {
  testing::Random random(1);
  std::vector<std::uint8_t> bytes(kPages * kPageBytes);
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}

void report(benchmark::State& state) {
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kPages * kPageBytes));
}

void digests_openssl(benchmark::State& state) {
  const std::vector<std::uint8_t> bytes = pool();
  for (auto _ : state) {
    for (std::size_t page = 0; page < kPages; ++page) {
      benchmark::DoNotOptimize(sha256(std::span(bytes).subspan(page * kPageBytes, kPageBytes)));
    }
  }
  report(state);
}
BENCHMARK(digests_openssl);

void digests_sha_ni(benchmark::State& state) {
  if (!testing::cpu_has_sha_ni()) {
    state.SkipWithError(sha_ni_obstacle().c_str());
    return;
  }
  const std::vector<std::uint8_t> bytes = pool();
  std::vector<const std::uint8_t*> pages;
  for (std::size_t page = 0; page < kPages; ++page) pages.push_back(bytes.data() + page * kPageBytes);
  std::vector<Digest> digests(kPages);
  for (auto _ : state) {
    sha_ni::digests({pages.data(), kPageBytes, digests[0].data()}, 0, kPages);
    benchmark::DoNotOptimize(digests.data());
  }
  report(state);
}
BENCHMARK(digests_sha_ni);

}  // namespace
}  // namespace fieldprint::backend
