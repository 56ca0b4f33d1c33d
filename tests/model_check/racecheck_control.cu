#include <cuda_runtime_api.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "backend/cuda/barrier.cuh"
#include "backend/cuda/device.h"

/// What compute-sanitizer's racecheck makes of barriers in shared memory: a ring of slots from one warp to
/// two, and warps that take turns, each right in two ways and wrong in others. tools/racecheck runs them all.
///
///   usage: racecheck_control NAME      prints whether the sum came out as it must; exit status 1 if not
namespace fieldprint::backend::cuda {
namespace {

constexpr int kSlots = 3;
constexpr int kRounds = 20;
constexpr int kWords = 128;  ///< of a slot
constexpr int kWarps = 3;

/// Who arrives for a warp, and what is forgotten.
enum class Way { kAllLanes, kOneLane, kReadEarly, kWrittenEarly, kReleasedEarly };

template <Way kWay>
constexpr bool kAllArrive = kWay != Way::kOneLane;

template <Way kWay>
__device__ void arrive(std::uint64_t* barrier, int lane) {
  if (kAllArrive<kWay>) {
    barrier_arrive(barrier);
  } else {
    __syncwarp();
    if (lane == 0) barrier_arrive(barrier);
  }
}

/// Warp 0 writes round after round into the slots, the others add up what they read.
template <Way kWay>
__global__ void ring(unsigned* sum) {
  __shared__ unsigned slots[kSlots][kWords];
  __shared__ std::uint64_t full[kSlots];
  __shared__ std::uint64_t empty[kSlots];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kSlots; ++i) {
      barrier_init(full + i, kAllArrive<kWay> ? 32 : 1);
      barrier_init(empty + i, (kWarps - 1) * (kAllArrive<kWay> ? 32 : 1));
    }
  }
  __syncthreads();
  unsigned mine = 0;
  for (int round = 0; round < kRounds; ++round) {
    const int slot = round % kSlots;
    const auto parity = static_cast<std::uint32_t>(round / kSlots % 2);
    if (warp == 0) {
      if (kWay != Way::kWrittenEarly) barrier_wait(empty + slot, parity ^ 1U);
      for (int i = lane; i < kWords; i += 32) slots[slot][i] = static_cast<unsigned>(1000 * round + i);
      if (kWay == Way::kWrittenEarly) barrier_wait(empty + slot, parity ^ 1U);
      arrive<kWay>(full + slot, lane);
    } else {
      if (kWay != Way::kReadEarly) barrier_wait(full + slot, parity);
      if (kWay == Way::kReleasedEarly) arrive<kWay>(empty + slot, lane);
      for (int i = lane; i < kWords; i += 32) mine += slots[slot][(i + 7) % kWords];
      if (kWay == Way::kReadEarly) barrier_wait(full + slot, parity);
      if (kWay != Way::kReleasedEarly) arrive<kWay>(empty + slot, lane);
    }
  }
  if (warp > 0) atomicAdd(sum, mine);
}
constexpr unsigned kRingSum =
    (kWarps - 1) * (1000U * kWords * kRounds * (kRounds - 1) / 2 + kRounds * kWords * (kWords - 1) / 2);

/// Warps add to a row in turn. With kReadEarly they do not wait for their turn.
template <Way kWay>
__global__ void turns(unsigned* sum) {
  __shared__ unsigned row[32];
  __shared__ std::uint64_t turn[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kWarps; ++i) barrier_init(turn + i, kAllArrive<kWay> ? 32 : 1);
  }
  __syncthreads();
  if (warp == 0) arrive<kWay>(turn, lane);
  for (int round = 0; round < kRounds; ++round) {
    if (kWay != Way::kReadEarly) barrier_wait(turn + warp, static_cast<std::uint32_t>(round % 2));
    const bool first = round == 0 && warp == 0;
    row[lane] = (first ? 0U : row[lane]) + static_cast<unsigned>(warp + 1);
    if (round + 1 == kRounds && warp + 1 == kWarps) atomicAdd(sum, row[lane]);
    arrive<kWay>(turn + (warp + 1) % kWarps, lane);
  }
}
constexpr unsigned kTurnsSum = 32U * kRounds * kWarps * (kWarps + 1) / 2;

struct Trial {
  std::string_view name;
  void (*kernel)(unsigned*);
  unsigned sum;
};
constexpr std::array kTrials = {
    Trial{"ring-all-lanes", ring<Way::kAllLanes>, kRingSum},
    Trial{"ring-one-lane", ring<Way::kOneLane>, kRingSum},
    Trial{"ring-read-early", ring<Way::kReadEarly>, kRingSum},
    Trial{"ring-written-early", ring<Way::kWrittenEarly>, kRingSum},
    Trial{"ring-released-early", ring<Way::kReleasedEarly>, kRingSum},
    Trial{"turns-all-lanes", turns<Way::kAllLanes>, kTurnsSum},
    Trial{"turns-one-lane", turns<Way::kOneLane>, kTurnsSum},
    Trial{"turns-not-awaited", turns<Way::kReadEarly>, kTurnsSum},
};

int run(std::string_view name) {
  for (const Trial& trial : kTrials) {
    if (trial.name != name) continue;
    unsigned* sum = nullptr;
    check(cudaMalloc(&sum, sizeof(*sum)), "cudaMalloc");
    check(cudaMemset(sum, 0, sizeof(*sum)), "cudaMemset");
    trial.kernel<<<1, 32 * kWarps>>>(sum);
    check_launch("trial");
    unsigned found = 0;
    check(cudaMemcpy(&found, sum, sizeof(found), cudaMemcpyDeviceToHost), "cudaMemcpy");
    check(cudaFree(sum), "cudaFree");
    std::printf("%s: %s\n", name.data(), found == trial.sum ? "as it must be" : "wrong");
    return found == trial.sum ? 0 : 1;
  }
  std::fprintf(stderr, "racecheck_control: there is no '%s'\n", name.data());
  return 2;
}

}  // namespace
}  // namespace fieldprint::backend::cuda

int main(int count, char** arguments) {
  return fieldprint::backend::cuda::run(count == 2 ? arguments[1] : "");
}
