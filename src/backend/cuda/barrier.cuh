#pragma once

#include <cstdint>

/// Barriers in shared memory (PTX ISA: mbarrier), by their addresses there or by pointers.
///
/// A warp hands over what its lanes wrote or read by one arrival after __syncwarp. compute-sanitizer's
/// racecheck sees no order through that and reports hazards (tests/model_check/racecheck_control.cu shows
/// it). tools/racecheck therefore builds with FIELDPRINT_EVERY_LANE_ARRIVES: then each lane arrives for
/// itself, at the cost of some tenths of a percent of the time.
namespace fieldprint::backend::cuda {
namespace {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void barrier_init(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// Arrives, and makes the phase wait for `bytes` bytes of copies.
__device__ __forceinline__ void barrier_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

/// Waits until the phase of this parity has completed.
__device__ __forceinline__ void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

__device__ __forceinline__ void barrier_init(std::uint64_t* barrier, std::uint32_t arrivals) {
  barrier_init(shared_address(barrier), arrivals);
}
__device__ __forceinline__ void barrier_arrive(std::uint64_t* barrier) {
  barrier_arrive(shared_address(barrier));
}

#ifdef FIELDPRINT_EVERY_LANE_ARRIVES
constexpr bool kEveryLaneArrives = true;
#else
constexpr bool kEveryLaneArrives = false;
#endif
constexpr int kArrivalsOfWarp = kEveryLaneArrives ? 32 : 1;

/// Of the lanes of a warp, of which `leader` is true in one: hands over what they wrote or read.
template <typename Barrier>
__device__ __forceinline__ void arrive_as_warp(Barrier barrier, bool leader) {
  if (!kEveryLaneArrives) __syncwarp();
  if (kEveryLaneArrives || leader) barrier_arrive(barrier);
}

__device__ __forceinline__ void barrier_expect(std::uint64_t* barrier, std::uint32_t bytes) {
  barrier_expect(shared_address(barrier), bytes);
}
__device__ __forceinline__ void barrier_wait(std::uint64_t* barrier, std::uint32_t parity) {
  barrier_wait(shared_address(barrier), parity);
}

}  // namespace
}  // namespace fieldprint::backend::cuda
