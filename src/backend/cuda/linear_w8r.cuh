#pragma once

#include "backend/cuda/linear_device.cuh"
#include "backend/cuda/linear_stages.cuh"
#include "backend/cuda/repack.h"
#include "backend/cuda/wgmma.cuh"

/// What the two tiled w8r kernels share: a stage of a tile, its multiplication and the end of a tile.
namespace fieldprint::backend::cuda {
namespace {

constexpr int kGroupTiles = 4;  ///< tiles of 16 rows in a warpgroup
constexpr int kTileStageBytes = static_cast<int>(kStageBlocks * kFragmentBytes);

/// A tile of kGroups · 64 rows by kColumns product columns.
template <int kGroups, int kColumns, int kStageCount>
struct W8RTile {
  static constexpr int kWarpgroups = kGroups;
  static constexpr int kConsumers = kGroups * 128;
  static constexpr int kTiles = kGroups * kGroupTiles;
  static constexpr int kRows = kTiles * exact::kTileRows;
  static constexpr int kCols = kColumns;
  static constexpr int kStages = kStageCount;
  static constexpr int kWeightBytes = kTiles * kTileStageBytes;
  static constexpr int kTokenBytes = kColumns * kStageCols;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  /// Stages from the next multiple of 1024 bytes on, and their barriers.
  static constexpr int kSharedBytes = 1024 + kStages * kStageBytes + 2 * kStages * 8;
};

template <typename S>
struct W8RStages : StageRing<S> {
  __device__ std::uint32_t tokens(int slot) const { return this->slot_address(slot); }
  __device__ std::uint32_t weights(int slot) const { return tokens(slot) + S::kTokenBytes; }
};

/// Starts the multiplication of the stage of a turn of the ring. A block past the last of the weights has
/// tokens of zeros and some earlier stage's weights. The fragments must stay until the multiplication has
/// been waited for.
template <typename S>
__device__ __forceinline__ void multiply_stage(int (&sums)[S::kCols / 2], uint4 (&fragments)[kStageBlocks],
                                               int turn, W8RStages<S> stages) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int slot = turn % S::kStages;
  barrier_wait(stages.full(slot), turn / S::kStages % 2);
#pragma unroll
  for (int k = 0; k < kStageBlocks; ++k) {
    fragments[k] = load_shared(stages.weights(slot) + warp * kTileStageBytes + k * 512 + lane * 16);
  }
  const std::uint64_t tokens = swizzled_descriptor(stages.tokens(slot));
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kStageBlocks; ++k) {
    Wgmma<S::kCols>::multiply(sums, fragments[k], tokens + k * (exact::kBlockCols >> 4));
  }
  wgmma_commit();
}

/// Multiplies `turns` stages from turn `first` on; release(turn) hands a stage back. Multiplications read
/// their fragments until they are waited for, so that two stages' fragments take turns.
template <typename S, typename Release>
__device__ __forceinline__ void multiply_stages(int (&sums)[S::kCols / 2], int first, int turns,
                                                W8RStages<S> stages, const Release& release) {
  uint4 even[kStageBlocks];
  uint4 odd[kStageBlocks];
  for (int turn = 0; turn < turns; turn += 2) {
    multiply_stage<S>(sums, even, first + turn, stages);
    if (turn > 0) {
      wgmma_wait<1>();
      release(first + turn - 1);
    }
    if (turn + 1 < turns) {
      multiply_stage<S>(sums, odd, first + turn + 1, stages);
      wgmma_wait<1>();
      release(first + turn);
    }
  }
  wgmma_wait<0>();
  release(first + turns - 1);
}

/// What a lane has of eight product columns: rows `row` and row + 8, columns `column` and column + 1.
struct Corner {
  int row;
  int column;
};

/// Ends kCount groups of eight product columns of a tile, the corners of which lie 8 columns apart. What is
/// accumulated to is read for all before any is written.
template <bool kA16, bool kAccumulate, int kCount>
__device__ __forceinline__ void store_groups(const LinearArgs& args, Corner corner, float2 row_scale,
                                             const int* sums) {
  constexpr int kTokens = kA16 ? 1 : 2;  // of a group
  const bool first_row = corner.row < args.w.rows;
  const bool second_row = corner.row + 8 < args.w.rows;
  float old[kCount][kTokens][2];
  const auto token_of = [&](int n, int i) {
    return kA16 ? corner.column / 2 + 4 * n : corner.column + 8 * n + i;
  };
  const auto out_of = [&](int token) { return args.y + token * args.y_stride + corner.row; };
  if constexpr (kAccumulate) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        const int token = token_of(n, i);
        const bool wanted = token < args.tokens;
        old[n][i][0] = wanted && first_row ? out_of(token)[0] : 0.0F;
        old[n][i][1] = wanted && second_row ? out_of(token)[8] : 0.0F;
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      const int token = token_of(n, i);
      if (token >= args.tokens) continue;
      const float scale = __ldg(args.x.scale + token);
      float y[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int* pair = sums + n * 4 + half * 2;
        const float dot = kA16 ? __fmaf_rn(__int2float_rn(pair[0]), 256.0F, __int2float_rn(pair[1]))
                               : __int2float_rn(pair[i]);
        y[half] = __fmul_rn(dot, __fmul_rn(scale, half == 0 ? row_scale.x : row_scale.y));
        if constexpr (kAccumulate) y[half] = __fadd_rn(old[n][i][half], y[half]);
      }
      float* out = out_of(token);
      if (first_row) out[0] = y[0];
      if (second_row) out[8] = y[1];
    }
  }
}

/// The corner of this lane in a warp's 16 rows from `row` on and product columns from `column` on.
__device__ __forceinline__ Corner corner_of(int row, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return {row + lane / 4, column + lane % 4 * 2};
}

/// Scales of rows `row` and row + 8, of some other row past the last.
__device__ __forceinline__ float2 row_scales(const LinearArgs& args, int row) {
  const int last = args.w.rows - 1;
  return make_float2(__ldg(args.w.row_scale + min(row, last)), __ldg(args.w.row_scale + min(row + 8, last)));
}

/// Ends kCols product columns.
template <int kCols, bool kA16>
__device__ __forceinline__ void store_tile(const LinearArgs& args, Corner corner,
                                           const int (&sums)[kCols / 2]) {
  constexpr int kGroups = kCols / 8;
  constexpr int kAtOnce = kGroups < 4 ? kGroups : 4;
  const float2 row_scale = row_scales(args, corner.row);
#pragma unroll
  for (int n = 0; n < kGroups; n += kAtOnce) {
    const Corner at{corner.row, corner.column + 8 * n};
    if (args.accumulate) {
      store_groups<kA16, true, kAtOnce>(args, at, row_scale, sums + 4 * n);
    } else {
      store_groups<kA16, false, kAtOnce>(args, at, row_scale, sums + 4 * n);
    }
  }
}

}  // namespace
}  // namespace fieldprint::backend::cuda
