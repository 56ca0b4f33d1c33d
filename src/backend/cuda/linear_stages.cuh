#pragma once

#include <cuda.h>

#include "backend/cuda/linear_device.cuh"

/// The ring of shared memory stages through which a producer hands 128 columns of a tile to consumers, and
/// the copies that fill it.
namespace fieldprint::backend::cuda {
namespace {

constexpr int kStageCols = 128;
constexpr int kStageBlocks = kStageCols / exact::kBlockCols;

/// Which tile a block has: bands of row tiles, so that the blocks that run together share weights and tokens
/// in L2.
struct TileIndex {
  int row;
  int column;
};
__device__ __forceinline__ TileIndex tile_index(int block, int row_tiles, int column_tiles) {
  constexpr int kBand = 8;
  const int first = block / (kBand * column_tiles) * kBand;
  const int height = min(kBand, row_tiles - first);
  const int within = block - first * column_tiles;
  return {first + within % height, within / height};
}

/// S::kStages slots of S::kStageBytes, then a barrier each for full and for empty.
template <typename S>
struct StageRing {
  std::uint32_t base;  ///< shared address of the first slot, a multiple of 1024

  __device__ std::uint32_t slot_address(int slot) const { return base + slot * S::kStageBytes; }
  __device__ std::uint32_t full(int slot) const { return base + S::kStages * S::kStageBytes + slot * 8; }
  __device__ std::uint32_t empty(int slot) const { return full(slot) + S::kStages * 8; }

  /// By the whole block: arrivals that complete a phase.
  __device__ void init(int full_arrivals, int empty_arrivals) const {
    if (threadIdx.x == 0) {
      for (int slot = 0; slot < S::kStages; ++slot) {
        barrier_init(full(slot), full_arrivals);
        barrier_init(empty(slot), empty_arrivals);
      }
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
  }
};

/// Arrives, and makes the phase wait for `bytes` bytes of copies.
__device__ __forceinline__ void expect_bytes(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

struct BoxPlace {
  int byte;
  int row;
};
__device__ __forceinline__ void copy_box(std::uint32_t to, const CUtensorMap* map, BoxPlace place,
                                         std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];" ::"r"(to),
      "l"(map), "r"(place.byte), "r"(place.row), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void copy_bulk(std::uint32_t to, const std::uint8_t* from, int bytes,
                                          std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ uint4 load_shared(std::uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

}  // namespace
}  // namespace fieldprint::backend::cuda
