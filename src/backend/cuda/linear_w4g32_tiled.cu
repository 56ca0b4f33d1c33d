#include <algorithm>

#include "backend/cuda/linear_device.cuh"
#include "backend/cuda/linear_kernels.h"
#include "backend/cuda/linear_stages.cuh"
#include "backend/cuda/repack.h"
#include "backend/cuda/tensor_map.h"

/// w4g32 for many tokens. Producer warps bring stages of four blocks of columns to shared memory; eight warps
/// multiply block by block on the tensor cores and fold each block's product into float sums in registers, in
/// order.
namespace fieldprint::backend::cuda {
namespace {

constexpr int kTileStageBytes = static_cast<int>(kStageBlocks * kW4BlockBytes);
constexpr int kProducers = 128;

/// kWarpCount warps, kWarpsM of them along the rows, each with kMTiles tiles of 16 rows and kNTiles tiles of
/// 8 tokens.
template <int kWarpCount, int kWarpsM, int kMTilesPerWarp, int kNTilesPerWarp, int kStageCount>
struct Shape {
  static constexpr int kWarps = kWarpCount;
  static constexpr int kWarpRows = kWarpsM;
  static constexpr int kMTiles = kMTilesPerWarp;
  static constexpr int kNTiles = kNTilesPerWarp;
  static constexpr int kTiles = kWarpsM * kMTiles;
  static constexpr int kRows = kTiles * exact::kTileRows;
  static constexpr int kTokens = kWarps / kWarpsM * kNTiles * 8;
  static constexpr int kStages = kStageCount;
  static constexpr int kConsumers = kWarps * 32;
  static constexpr int kThreads = kConsumers + kProducers;
  /// Warps with many sums take registers from the producers.
  static constexpr bool kLarge = kMTiles * kNTiles > 8;
  static constexpr int kTokenBytes = kTokens * kStageCols;
  static constexpr int kWeightBytes = kTiles * kTileStageBytes;
  /// [kStageBlocks][kTokens] pairs of scale and block_sum.
  static constexpr int kScaleBytes = kStageBlocks * kTokens * 8;
  static constexpr int kStageBytes = (kTokenBytes + kWeightBytes + kScaleBytes + 1023) / 1024 * 1024;
  static constexpr int kSharedBytes = 1024 + kStages * kStageBytes + 2 * kStages * 8;
};

template <typename S>
struct Stages : StageRing<S> {
  __device__ std::uint32_t tokens(int slot) const { return this->slot_address(slot); }
  __device__ std::uint32_t weights(int slot) const { return tokens(slot) + S::kTokenBytes; }
  __device__ std::uint32_t scales(int slot) const { return weights(slot) + S::kWeightBytes; }
};

__device__ __forceinline__ void copy_word(std::uint32_t to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

/// Each of the 128 threads brings the scales of one token (of several, where the tile has more), the first
/// warp the rest.
template <typename S>
__device__ void produce(const LinearArgs& args, const CUtensorMap* map, TileIndex tile, Stages<S> stages) {
  const int thread = static_cast<int>(threadIdx.x) - S::kConsumers;
  const int blocks = args.w.cols / exact::kBlockCols;
  const int tiles =
      min(S::kTiles, (args.w.rows + exact::kTileRows - 1) / exact::kTileRows - tile.row * S::kTiles);
  const std::uint8_t* weights =
      args.w.data + (static_cast<std::int64_t>(tile.row) * S::kTiles + thread) * blocks * kW4BlockBytes;
  const int token = tile.column * S::kTokens + thread;
  const bool scaled = thread < S::kTokens && token < args.tokens;
  const float* scale = args.x.scale + static_cast<std::int64_t>(token) * blocks;
  const float* block_sum = args.x.block_sum + static_cast<std::int64_t>(token) * blocks;
  const int all = (blocks + kStageBlocks - 1) / kStageBlocks;
  for (int stage = 0; stage < all; ++stage) {
    const int slot = stage % S::kStages;
    if (stage >= S::kStages) barrier_wait(stages.empty(slot), (stage / S::kStages - 1) % 2);
    const int count = min(kStageBlocks, blocks - stage * kStageBlocks);
    const int bytes = count * static_cast<int>(kW4BlockBytes);
    if (thread == 0) {
      expect_bytes(stages.full(slot), tiles * bytes + S::kTokenBytes);
      copy_box(stages.tokens(slot), map, {stage * kStageCols, tile.column * S::kTokens}, stages.full(slot));
    }
    if (thread < 32) __syncwarp();
    if (thread < tiles) {
      copy_bulk(stages.weights(slot) + thread * kTileStageBytes,
                weights + static_cast<std::int64_t>(stage) * kTileStageBytes, bytes, stages.full(slot));
    }
    if (scaled) {
      for (int k = 0; k < count; ++k) {
        const std::uint32_t pair = stages.scales(slot) + (k * S::kTokens + thread) * 8;
        copy_word(pair, scale + stage * kStageBlocks + k);
        copy_word(pair + 4, block_sum + stage * kStageBlocks + k);
      }
    }
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(stages.full(slot)) : "memory");
  }
}

/// B fragments of two tiles of 8 tokens and block k of a stage, from rows in 128-byte swizzle.
__device__ __forceinline__ uint4 load_tokens(std::uint32_t tokens, int first_token, int k, int lane) {
  const int row = first_token + lane / 16 * 8 + lane % 8;
  const int chunk = (2 * k + lane / 8 % 2) ^ (row % 8);
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(tokens + row * kStageCols + chunk * 16)
               : "memory");
  return v;
}

__device__ __forceinline__ uint2 load_shared_pair(std::uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
  return v;
}

template <typename S>
struct Sums {
  float products[S::kMTiles][S::kNTiles][4];
  float minima[S::kMTiles][S::kNTiles][4];
};

struct Place {
  int row_warp;
  int token_warp;
  int lane;
};

/// Folds block k of a stage.
template <typename S>
__device__ __forceinline__ void fold_block(Sums<S>& sums, Stages<S> stages, int slot, int k, Place place) {
  constexpr int kMagic[4] = {kMagicDotBits, kMagicDotBits, kMagicDotBits, kMagicDotBits};
  uint4 fragments[S::kMTiles];
  float2 low[S::kMTiles];
  float2 high[S::kMTiles];
#pragma unroll
  for (int m = 0; m < S::kMTiles; ++m) {
    const std::uint32_t block = stages.weights(slot) + (place.row_warp * S::kMTiles + m) * kTileStageBytes +
                                k * static_cast<int>(kW4BlockBytes);
    fragments[m] = w4_fragment(load_shared_pair(block + place.lane * 8));
    const uint2 coefficients = load_shared_pair(block + 256 + place.lane / 4 * 8);
    low[m] = w4_coefficients(coefficients.x);
    high[m] = w4_coefficients(coefficients.y);
  }
  const int first_token = place.token_warp * S::kNTiles * 8;
#pragma unroll
  for (int pair = 0; pair < S::kNTiles / 2; ++pair) {
    const uint4 tokens = load_tokens(stages.tokens(slot), first_token + pair * 16, k, place.lane);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int n = pair * 2 + half;
      // scale and block_sum of token 2t, then of 2t + 1
      const uint4 scales =
          load_shared(stages.scales(slot) + (k * S::kTokens + first_token + n * 8 + place.lane % 4 * 2) * 8);
#pragma unroll
      for (int m = 0; m < S::kMTiles; ++m) {
        int dot[4];
        mma_s8(dot, fragments[m], half == 0 ? tokens.x : tokens.z, half == 0 ? tokens.y : tokens.w, kMagic);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float scale = __uint_as_float(i % 2 == 0 ? scales.x : scales.z);
          const float block_sum = __uint_as_float(i % 2 == 0 ? scales.y : scales.w);
          const float2 coefficients = i < 2 ? low[m] : high[m];
          float& product = sums.products[m][n][i];
          float& minimum = sums.minima[m][n][i];
          product = __fmaf_rn(magic_to_float(dot[i]), __fmul_rn(coefficients.x, scale), product);
          minimum = __fmaf_rn(coefficients.y, block_sum, minimum);
        }
      }
    }
  }
}

template <typename S>
__device__ __forceinline__ void consume(const LinearArgs& args, TileIndex tile, Stages<S> stages) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const Place place{warp % S::kWarpRows, warp / S::kWarpRows, static_cast<int>(threadIdx.x) % 32};
  const int blocks = args.w.cols / exact::kBlockCols;
  const int all = (blocks + kStageBlocks - 1) / kStageBlocks;
  Sums<S> sums = {};
  for (int stage = 0; stage < all; ++stage) {
    const int slot = stage % S::kStages;
    barrier_wait(stages.full(slot), stage / S::kStages % 2);
    const int count = min(kStageBlocks, blocks - stage * kStageBlocks);
    if (count == kStageBlocks) {
#pragma unroll
      for (int k = 0; k < kStageBlocks; ++k) fold_block<S>(sums, stages, slot, k, place);
    } else {
      for (int k = 0; k < count; ++k) fold_block<S>(sums, stages, slot, k, place);
    }
    __syncwarp();
    if (place.lane == 0) barrier_arrive(stages.empty(slot));
  }
#pragma unroll
  for (int m = 0; m < S::kMTiles; ++m) {
#pragma unroll
    for (int n = 0; n < S::kNTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = tile.row * S::kRows + (place.row_warp * S::kMTiles + m) * exact::kTileRows +
                        place.lane / 4 + 8 * (i / 2);
        const int token =
            tile.column * S::kTokens + (place.token_warp * S::kNTiles + n) * 8 + place.lane % 4 * 2 + i % 2;
        if (row < args.w.rows && token < args.tokens) {
          store(args, token, row, __fadd_rn(sums.products[m][n][i], sums.minima[m][n][i]));
        }
      }
    }
  }
}

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    w4g32_tiled_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ LinearArgs args,
                       int row_tiles) {
  extern __shared__ std::uint8_t shared[];
  const Stages<S> stages{{(shared_address(shared) + 1023U) & ~1023U}};
  const TileIndex tile =
      tile_index(static_cast<int>(blockIdx.x), row_tiles, (args.tokens + S::kTokens - 1) / S::kTokens);
  stages.init(kProducers + 1, S::kWarps);
  let_later_kernels_start();
  wait_for_earlier_kernels();
  if (threadIdx.x >= S::kConsumers) {
    if constexpr (S::kLarge) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    produce<S>(args, &map, tile, stages);
  } else {
    if constexpr (S::kLarge) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    consume<S>(args, tile, stages);
  }
}

template <typename S>
void launch(const LinearArgs& args, Stream stream) {
  const auto kernel = w4g32_tiled_kernel<S>;
  // Once a kernel: the attribute outlives the call.
  static const int configured = cudaFuncSetAttribute(
      reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
  check(configured, "cudaFuncSetAttribute");
  const int row_tiles = (args.w.rows + S::kRows - 1) / S::kRows;
  const int token_tiles = (args.tokens + S::kTokens - 1) / S::kTokens;
  const CUtensorMap map = byte_matrix_map(args.x.q, args.tokens, args.w.cols, {S::kTokens, kStageCols});
  launch_early({dim3(static_cast<unsigned>(row_tiles * token_tiles)), S::kThreads, S::kSharedBytes, 1},
               stream, kernel, map, args, row_tiles);
}

}  // namespace

void linear_w4g32_tiled(const LinearArgs& args, Stream stream) {
  const int large = (args.w.rows + 127) / 128 * ((args.tokens + 127) / 128);
  if (args.tokens > 64 && 4 * large >= 3 * multiprocessors())
    return launch<Shape<8, 4, 2, 8, 6>>(args, stream);
  if (args.tokens <= 16) return launch<Shape<4, 4, 1, 2, 6>>(args, stream);
  if (args.tokens <= 32) return launch<Shape<4, 4, 1, 4, 5>>(args, stream);
  launch<Shape<8, 4, 1, 4, 4>>(args, stream);
}

}  // namespace fieldprint::backend::cuda
