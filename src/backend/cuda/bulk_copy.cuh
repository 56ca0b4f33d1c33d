#pragma once

#include <cstdint>

#include "backend/cuda/barrier.cuh"

/// Bulk asynchronous copies from device to shared memory, which complete on a barrier in shared memory (PTX
/// ISA: cp.async.bulk).
namespace fieldprint::backend::cuda {

/// Of what is read once: the first to leave the cache.
__device__ __forceinline__ void bulk_copy_once(void* to, const void* from, std::uint32_t bytes,
                                               std::uint64_t* barrier) {
  asm volatile(
      "{\n"
      ".reg .b64 policy;\n"
      "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
      "[%3], "
      "policy;\n"
      "}\n" ::"r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

}  // namespace fieldprint::backend::cuda
