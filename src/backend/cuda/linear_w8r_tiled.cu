#include <cooperative_groups.h>

#include <algorithm>

#include "backend/cuda/linear_kernels.h"
#include "backend/cuda/linear_w8r.cuh"
#include "backend/cuda/tensor_map.h"

/// w8r by warpgroup instructions, for a few dozen tokens: a block has a tile of 64 rows for each of its one
/// or two warpgroups, and a warp that brings the stages. Where there are no more tiles than multiprocessors,
/// each has one of those to itself and so many more stages on their way. Where there are far fewer, a cluster
/// of blocks shares the columns of one: integer sums, so that the split does not show.
namespace fieldprint::backend::cuda {
namespace {

namespace cg = cooperative_groups;

/// kBlocks blocks run on a multiprocessor and take most of its memory for stages.
template <int kGroups, int kColumns, int kStageCount, int kBlocks>
struct Shape : W8RTile<kGroups, kColumns, kStageCount> {
  using Tile = W8RTile<kGroups, kColumns, kStageCount>;
  static constexpr int kThreads = Tile::kConsumers + 32;
  static constexpr int kResident = kBlocks;

  static int row_tiles(const LinearArgs& args) { return (args.w.rows + Tile::kRows - 1) / Tile::kRows; }
  static int tiles(const LinearArgs& args) {
    return row_tiles(args) * ((product_columns(args) + kColumns - 1) / kColumns);
  }
};

struct Task {
  LinearArgs args;
  int split;  ///< blocks that share the columns of a tile: the cluster's size
  int row_tiles;
};

/// The stages [begin, end) of a tile.
struct Range {
  int begin;
  int end;
};

/// One warp. Weights do not depend on earlier kernels and are asked for before those have ended.
template <typename S>
__device__ void produce(const LinearArgs& args, const CUtensorMap* map, TileIndex tile, Range range,
                        W8RStages<S> stages) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int blocks = args.w.cols / exact::kBlockCols;
  const int tiles =
      min(S::kTiles, (args.w.rows + exact::kTileRows - 1) / exact::kTileRows - tile.row * S::kTiles);
  const std::uint8_t* weights =
      args.w.data + (static_cast<std::int64_t>(tile.row) * S::kTiles + lane) * blocks * kFragmentBytes;
  const auto copy_weights = [&](int stage, int slot) {
    const int bytes = min(kStageBlocks, blocks - stage * kStageBlocks) * static_cast<int>(kFragmentBytes);
    if (lane == 0) expect_bytes(stages.full(slot), tiles * bytes + S::kTokenBytes);
    __syncwarp();
    if (lane < tiles) {
      copy_bulk(stages.weights(slot) + lane * kTileStageBytes,
                weights + static_cast<std::int64_t>(stage) * kTileStageBytes, bytes, stages.full(slot));
    }
  };
  const auto copy_tokens = [&](int stage, int slot) {
    if (lane != 0) return;
    copy_box(stages.tokens(slot), map, {stage * kStageCols, tile.column * S::kCols}, stages.full(slot));
  };
  const int turns = range.end - range.begin;
  const int first = min(turns, S::kStages);
  for (int turn = 0; turn < first; ++turn) copy_weights(range.begin + turn, turn);
  wait_for_earlier_kernels();
  for (int turn = 0; turn < first; ++turn) copy_tokens(range.begin + turn, turn);
  for (int turn = first; turn < turns; ++turn) {
    const int slot = turn % S::kStages;
    barrier_wait(stages.empty(slot), (turn / S::kStages - 1) % 2);
    copy_weights(range.begin + turn, slot);
    copy_tokens(range.begin + turn, slot);
  }
}

/// Adds up the sums of the cluster's blocks: each writes its own to its shared memory and ends every split-th
/// group of eight product columns.
template <typename S, bool kA16>
__device__ void reduce_and_store(const LinearArgs& args, Corner corner, const int (&sums)[S::kCols / 2],
                                 int4* exchange) {
  const cg::cluster_group cluster = cg::this_cluster();
  constexpr int kGroups = S::kCols / 8;
  const int thread = static_cast<int>(threadIdx.x);
  const int split = static_cast<int>(cluster.num_blocks());
  if (thread < S::kConsumers) {
    asm volatile("bar.sync 1, %0;" ::"n"(S::kConsumers)
                 : "memory");  // no multiplication reads the stages any more
#pragma unroll
    for (int n = 0; n < kGroups; ++n) {
      exchange[n * S::kConsumers + thread] =
          make_int4(sums[4 * n], sums[4 * n + 1], sums[4 * n + 2], sums[4 * n + 3]);
    }
  }
  cluster.sync();
  if (thread < S::kConsumers) {
    const float2 row_scale = row_scales(args, corner.row);
    for (int n = static_cast<int>(cluster.block_rank()); n < kGroups; n += split) {
      int sum[4] = {};
      for (int other = 0; other < split; ++other) {
        const int4 part = cluster.map_shared_rank(exchange, other)[n * S::kConsumers + thread];
        sum[0] += part.x;
        sum[1] += part.y;
        sum[2] += part.z;
        sum[3] += part.w;
      }
      const Corner at{corner.row, corner.column + 8 * n};
      if (args.accumulate) {
        store_groups<kA16, true, 1>(args, at, row_scale, sum);
      } else {
        store_groups<kA16, false, 1>(args, at, row_scale, sum);
      }
    }
  }
  cluster.sync();  // the others may still read this block's sums
}

template <typename S, bool kA16>
__global__ void __launch_bounds__(S::kThreads, S::kResident)
    tiled_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Task task) {
  extern __shared__ std::uint8_t shared[];
  const std::uint32_t raw = shared_address(shared);
  const std::uint32_t base = (raw + 1023U) & ~1023U;
  const W8RStages<S> stages{{base}};
  const LinearArgs& args = task.args;
  const int columns = product_columns(args);
  const int rank = static_cast<int>(blockIdx.x) % task.split;
  const TileIndex tile = tile_index(static_cast<int>(blockIdx.x) / task.split, task.row_tiles,
                                    (columns + S::kCols - 1) / S::kCols);
  const int all = (args.w.cols + kStageCols - 1) / kStageCols;
  const Range range{all * rank / task.split, all * (rank + 1) / task.split};
  stages.init(1, S::kWarpgroups * 4);
  let_later_kernels_start();

  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int sums[S::kCols / 2] = {};
  if (threadIdx.x >= S::kConsumers) {
    produce<S>(args, &map, tile, range, stages);
  } else {
    wait_for_earlier_kernels();
    multiply_stages<S>(sums, 0, range.end - range.begin, stages, [&](int turn) {
      if (lane == 0) barrier_arrive(stages.empty(turn % S::kStages));
    });
  }
  const Corner corner = corner_of(tile.row * S::kRows + warp * exact::kTileRows, tile.column * S::kCols);
  if (task.split > 1) {
    reduce_and_store<S, kA16>(args, corner, sums, reinterpret_cast<int4*>(shared + (base - raw)));
  } else if (threadIdx.x < S::kConsumers) {
    store_tile<S::kCols, kA16>(args, corner, sums);
  }
}

template <typename S, bool kA16>
void launch(const LinearArgs& args, int split, Stream stream) {
  const auto kernel = tiled_kernel<S, kA16>;
  // Once a kernel: the attribute outlives the call.
  static const int configured = cudaFuncSetAttribute(
      reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
  check(configured, "cudaFuncSetAttribute");
  const CUtensorMap map =
      byte_matrix_map(args.x.q, product_columns(args), args.w.cols, {S::kCols, kStageCols});
  launch_early({dim3(static_cast<unsigned>(S::tiles(args) * split)), S::kThreads, S::kSharedBytes, split},
               stream, kernel, map, Task{args, split, S::row_tiles(args)});
}

/// Into how many blocks each of `tiles` tiles of `stages` stages is cut. Each block has a multiprocessor to
/// itself. Larger clusters and shorter parts cost more than they bring.
int split_of(int tiles, int stages) {
  constexpr int kMostBlocks = 4;
  constexpr int kLeastStages = 24;
  int split = 1;
  while (split < kMostBlocks && 2 * split * tiles <= multiprocessors() &&
         stages >= 2 * split * kLeastStages) {
    split *= 2;
  }
  return split;
}

/// With the first of the shapes whose tiles run at once, or the last.
template <typename S, typename... Others>
void launch_first(const LinearArgs& args, Stream stream) {
  const int tiles = S::tiles(args);
  if constexpr (sizeof...(Others) > 0) {
    if (tiles > S::kResident * multiprocessors()) return launch_first<Others...>(args, stream);
  }
  const int split = S::kResident > 1 ? 1 : split_of(tiles, (args.w.cols + kStageCols - 1) / kStageCols);
  args.x.format == ActivationFormat::kA16 ? launch<S, true>(args, split, stream)
                                          : launch<S, false>(args, split, stream);
}

}  // namespace

void linear_w8r_tiled(const LinearArgs& args, Stream stream) {
  // Measured on an H100. With 128 columns tokens are as many bytes as the weights of two warpgroups, which
  // share them.
  const int columns = product_columns(args);
  if (columns <= 16) {
    return launch_first<Shape<1, 16, 18, 1>, Shape<1, 16, 10, 2>, Shape<1, 16, 5, 4>>(args, stream);
  }
  if (columns <= 32) {
    return launch_first<Shape<1, 32, 14, 1>, Shape<1, 32, 8, 2>, Shape<1, 32, 4, 4>>(args, stream);
  }
  if (columns <= 64) {
    return launch_first<Shape<1, 64, 11, 1>, Shape<1, 64, 6, 2>, Shape<1, 64, 3, 4>>(args, stream);
  }
  launch_first<Shape<1, 128, 8, 1>, Shape<2, 128, 6, 1>, Shape<2, 128, 3, 2>>(args, stream);
}

}  // namespace fieldprint::backend::cuda
