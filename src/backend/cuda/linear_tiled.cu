#include <cooperative_groups.h>

#include <algorithm>

#include "backend/cuda/linear_device.cuh"
#include "backend/cuda/linear_kernels.h"
#include "backend/cuda/linear_stages.cuh"
#include "backend/cuda/repack.h"
#include "backend/cuda/tensor_map.h"
#include "backend/cuda/wgmma.cuh"

/// w8r by warpgroup instructions. A block multiplies a tile of rows by a tile of product columns: one warp
/// brings stages of 128 weight columns to shared memory, weights by bulk copies in fragment order, tokens by
/// the tensor copy engine; warpgroups of 64 rows each take the fragments to registers and multiply. Where the
/// tiles are too few to fill the device, a cluster of blocks shares the columns of one tile: integer sums, so
/// that the split does not show.
namespace fieldprint::backend::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kGroupTiles = 4;  ///< tiles of 16 rows in a warpgroup
constexpr int kTileStageBytes = static_cast<int>(kStageBlocks * kFragmentBytes);

template <int kGroups, int kColumns, int kStageCount>
struct Shape {
  static constexpr int kWarpgroups = kGroups;
  static constexpr int kTiles = kGroups * kGroupTiles;
  static constexpr int kRows = kTiles * exact::kTileRows;
  static constexpr int kCols = kColumns;  ///< product columns
  static constexpr int kStages = kStageCount;
  /// Two warpgroups need more registers each than a third of the multiprocessor's: the producer, a warpgroup
  /// of which one warp works, gives its own up.
  static constexpr bool kLarge = kGroups > 1;
  static constexpr int kThreads = kGroups * 128 + (kLarge ? 128 : 32);
  static constexpr int kWeightBytes = kTiles * kTileStageBytes;
  static constexpr int kTokenBytes = kColumns * kStageCols;
  static constexpr int kStageBytes = kWeightBytes + kTokenBytes;
  /// Stages from the next multiple of 1024 bytes on, and their barriers.
  static constexpr int kSharedBytes = 1024 + kStages * kStageBytes + 2 * kStages * 8;
};

struct Task {
  LinearArgs args;
  int split;      ///< blocks that share the columns of a tile: the cluster's size
  int row_tiles;  ///< tiles of Shape::kRows
};

template <typename S>
struct Stages : StageRing<S> {
  __device__ std::uint32_t tokens(int slot) const { return this->slot_address(slot); }
  __device__ std::uint32_t weights(int slot) const { return tokens(slot) + S::kTokenBytes; }
};

/// The stages [begin, end) of a row of tiles, and where the ring stands.
struct Range {
  int begin;
  int end;
};

template <typename S>
__device__ void produce(const LinearArgs& args, const CUtensorMap* map, TileIndex tile, Range range,
                        Stages<S> stages) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int blocks = args.w.cols / exact::kBlockCols;
  const int tiles =
      min(S::kTiles, (args.w.rows + exact::kTileRows - 1) / exact::kTileRows - tile.row * S::kTiles);
  const std::uint8_t* weights =
      args.w.data + (static_cast<std::int64_t>(tile.row) * S::kTiles + lane) * blocks * kFragmentBytes;
  for (int stage = range.begin; stage < range.end; ++stage) {
    const int turn = stage - range.begin;
    const int slot = turn % S::kStages;
    if (turn >= S::kStages) barrier_wait(stages.empty(slot), (turn / S::kStages - 1) % 2);
    const int bytes = min(kStageBlocks, blocks - stage * kStageBlocks) * static_cast<int>(kFragmentBytes);
    if (lane == 0) {
      expect_bytes(stages.full(slot), tiles * bytes + S::kTokenBytes);
      copy_box(stages.tokens(slot), map, {stage * kStageCols, tile.column * S::kCols}, stages.full(slot));
    }
    __syncwarp();
    if (lane < tiles) {
      copy_bulk(stages.weights(slot) + lane * kTileStageBytes,
                weights + static_cast<std::int64_t>(stage) * kTileStageBytes, bytes, stages.full(slot));
    }
  }
}

/// Multiplies one stage, then waits for the one before and hands its slot back. A block past the last of the
/// weights has tokens of zeros and some earlier stage's weights.
template <typename S>
__device__ __forceinline__ void consume_stage(int (&sums)[S::kCols / 2], uint4 (&fragments)[kStageBlocks],
                                              int turn, Stages<S> stages) {
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
  if (turn > 0) {
    wgmma_wait<1>();
    if (lane == 0) barrier_arrive(stages.empty((turn - 1) % S::kStages));
  }
}

/// This warp's 16 rows (of its warpgroup's 64) times the tile's columns. Multiplications read their fragments
/// until they are waited for, so that two stages' fragments take turns.
template <typename S>
__device__ __forceinline__ void consume(int (&sums)[S::kCols / 2], Range range, Stages<S> stages) {
  uint4 even[kStageBlocks];
  uint4 odd[kStageBlocks];
  const int turns = range.end - range.begin;
  for (int turn = 0; turn < turns; turn += 2) {
    consume_stage<S>(sums, even, turn, stages);
    if (turn + 1 < turns) consume_stage<S>(sums, odd, turn + 1, stages);
  }
  wgmma_wait<0>();
}

template <typename S, bool kA16>
__device__ __forceinline__ void store_sums(const LinearArgs& args, TileIndex tile, int pair, int first,
                                           int second) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  const int row = tile.row * S::kRows + thread / 32 * exact::kTileRows + lane / 4 + 8 * (pair % 2);
  store_w8r<kA16>(args, row, tile.column * S::kCols + pair / 2 * 8 + lane % 4 * 2, first, second);
}

template <typename S, bool kA16>
__device__ __forceinline__ void store_all(const LinearArgs& args, TileIndex tile,
                                          const int (&sums)[S::kCols / 2]) {
#pragma unroll
  for (int p = 0; p < S::kCols / 4; ++p) store_sums<S, kA16>(args, tile, p, sums[2 * p], sums[2 * p + 1]);
}

/// Adds up the sums of the cluster's blocks: each writes its own to its shared memory and ends every split-th
/// pair.
template <typename S, bool kA16>
__device__ void reduce_and_store(const LinearArgs& args, TileIndex tile, const int (&sums)[S::kCols / 2],
                                 int2* exchange) {
  const cg::cluster_group cluster = cg::this_cluster();
  constexpr int kConsumers = S::kWarpgroups * 128;
  constexpr int kPairs = S::kCols / 4;
  const int thread = static_cast<int>(threadIdx.x);
  const int split = static_cast<int>(cluster.num_blocks());
  const int rank = static_cast<int>(cluster.block_rank());
  if (thread < kConsumers) {
    asm volatile("bar.sync 1, %0;" ::"n"(kConsumers)
                 : "memory");  // no multiplication reads the stages any more
#pragma unroll
    for (int p = 0; p < kPairs; ++p)
      exchange[p * kConsumers + thread] = make_int2(sums[2 * p], sums[2 * p + 1]);
  }
  cluster.sync();
  if (thread < kConsumers) {
    for (int p = rank; p < kPairs; p += split) {
      int2 sum = make_int2(0, 0);
      for (int other = 0; other < split; ++other) {
        const int2 part = cluster.map_shared_rank(exchange, other)[p * kConsumers + thread];
        sum.x += part.x;
        sum.y += part.y;
      }
      store_sums<S, kA16>(args, tile, p, sum.x, sum.y);
    }
  }
  cluster.sync();  // the others may still read this block's sums
}

template <typename S, bool kA16>
__global__ void __launch_bounds__(S::kThreads, 1)
    tiled_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Task task) {
  extern __shared__ std::uint8_t shared[];
  const std::uint32_t raw = shared_address(shared);
  const std::uint32_t base = (raw + 1023U) & ~1023U;
  const Stages<S> stages{{base}};
  const LinearArgs& args = task.args;
  const int columns = product_columns(args);
  const int rank = static_cast<int>(blockIdx.x) % task.split;
  const TileIndex tile = tile_index(static_cast<int>(blockIdx.x) / task.split, task.row_tiles,
                                    (columns + S::kCols - 1) / S::kCols);
  const int all = (args.w.cols + kStageCols - 1) / kStageCols;
  const Range range{all * rank / task.split, all * (rank + 1) / task.split};

  stages.init(1, S::kWarpgroups * 4);
  if constexpr (S::kLarge) {
    if (threadIdx.x >= S::kWarpgroups * 128) {
      asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
      if (threadIdx.x < S::kWarpgroups * 128 + 32) produce<S>(args, &map, tile, range, stages);
    } else {
      asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
      int sums[S::kCols / 2] = {};
      consume<S>(sums, range, stages);
      store_all<S, kA16>(args, tile, sums);
    }
  } else {
    int sums[S::kCols / 2] = {};
    if (threadIdx.x >= S::kWarpgroups * 128) {
      produce<S>(args, &map, tile, range, stages);
    } else {
      consume<S>(sums, range, stages);
      if (task.split == 1) store_all<S, kA16>(args, tile, sums);
    }
    if (task.split > 1)
      reduce_and_store<S, kA16>(args, tile, sums, reinterpret_cast<int2*>(shared + (base - raw)));
  }
}

template <typename S, bool kA16>
void launch(const LinearArgs& args, int split, Stream stream) {
  const auto kernel = tiled_kernel<S, kA16>;
  // Once a kernel: the attribute outlives the call.
  static const int configured = cudaFuncSetAttribute(
      reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
  check(configured, "cudaFuncSetAttribute");
  const int columns = product_columns(args);
  const int row_tiles = (args.w.rows + S::kRows - 1) / S::kRows;
  const int column_tiles = (columns + S::kCols - 1) / S::kCols;
  const CUtensorMap map = byte_matrix_map(args.x.q, columns, args.w.cols, {S::kCols, kStageCols});

  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(split), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(row_tiles * column_tiles * split));
  config.blockDim = dim3(S::kThreads);
  config.dynamicSmemBytes = S::kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, map, Task{args, split, row_tiles}), "linear_w8r_tiled");
}

template <typename S>
void launch(const LinearArgs& args, int split, Stream stream) {
  args.x.format == ActivationFormat::kA16 ? launch<S, true>(args, split, stream)
                                          : launch<S, false>(args, split, stream);
}

/// How many blocks share a tile of 64 rows: enough to have two on each of 132 multiprocessors, none with
/// fewer than four stages.
int split_of(const LinearArgs& args, int column_tiles) {
  const int tiles = (args.w.rows + 63) / 64 * column_tiles;
  const int stages = (args.w.cols + kStageCols - 1) / kStageCols;
  int split = 1;
  while (split < 8 && tiles * split < 200 && stages >= 8 * split) split *= 2;
  return split;
}

}  // namespace

void linear_w8r_tiled(const LinearArgs& args, Stream stream) {
  const int columns = product_columns(args);
  const int split = split_of(args, (columns + 127) / 128);
  if (columns <= 8) return launch<Shape<1, 8, 8>>(args, split, stream);
  if (columns <= 16) return launch<Shape<1, 16, 7>>(args, split, stream);
  if (columns <= 32) return launch<Shape<1, 32, 6>>(args, split, stream);
  if (columns <= 64) return launch<Shape<1, 64, 4>>(args, split, stream);
  const int large = (args.w.rows + 127) / 128 * ((columns + 255) / 256);
  if (columns <= 128 || large < 100) return launch<Shape<1, 128, 4>>(args, split, stream);
  launch<Shape<2, 256, 4>>(args, 1, stream);
}

}  // namespace fieldprint::backend::cuda
