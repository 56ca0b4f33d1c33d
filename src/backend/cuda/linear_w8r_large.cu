#include <algorithm>

#include "backend/cuda/linear_kernels.h"
#include "backend/cuda/linear_w8r.cuh"
#include "backend/cuda/tensor_map.h"

/// w8r for many tokens. Two blocks, a cluster, multiply two neighbouring tiles of rows by the same tile of
/// product columns: each brings half of the tokens' bytes for both. The blocks stay and take tile after tile,
/// so that the next tile's first stages are on their way while a tile is stored.
namespace fieldprint::backend::cuda {
namespace {

using S = W8RTile<2, 256, 4>;

constexpr int kBlocks = 2;  ///< of a cluster
constexpr int kThreads = S::kConsumers + 128;
constexpr int kTokenRows = S::kCols / kBlocks;

struct Task {
  LinearArgs args;
  int row_pairs;
  int column_tiles;
};

__device__ __forceinline__ int cluster_rank() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\n barrier.cluster.wait.acquire;" ::: "memory");
}

/// Brings a box to the same place of both blocks' shared memory, counted by both blocks' barriers.
__device__ __forceinline__ void copy_box_to_both(std::uint32_t to, const CUtensorMap* map, BoxPlace place,
                                                 std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(place.byte), "r"(place.row), "r"(barrier), "h"(static_cast<std::uint16_t>(3))
      : "memory");
}

__device__ __forceinline__ void arrive_at(std::uint32_t barrier, int rank) {
  asm volatile(
      "{\n .reg .b32 there;\n mapa.shared::cluster.u32 there, %0, %1;\n"
      " mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

/// One warp.
__device__ void produce(const Task& task, const CUtensorMap* map, int rank, W8RStages<S> stages) {
  const LinearArgs& args = task.args;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int blocks = args.w.cols / exact::kBlockCols;
  const int all = (blocks + kStageBlocks - 1) / kStageBlocks;
  const int row_tiles = (args.w.rows + exact::kTileRows - 1) / exact::kTileRows;
  const int step = static_cast<int>(gridDim.x) / kBlocks;
  int turn = 0;
  wait_for_earlier_kernels();
  for (int index = static_cast<int>(blockIdx.x) / kBlocks; index < task.row_pairs * task.column_tiles;
       index += step) {
    const TileIndex tile = tile_index(index, task.row_pairs, task.column_tiles);
    const int first = (tile.row * kBlocks + rank) * S::kTiles;
    const int tiles = max(0, min(S::kTiles, row_tiles - first));
    const std::uint8_t* weights =
        args.w.data + static_cast<std::int64_t>(first + lane) * blocks * kFragmentBytes;
    for (int stage = 0; stage < all; ++stage, ++turn) {
      const int slot = turn % S::kStages;
      if (turn >= S::kStages) barrier_wait(stages.empty(slot), (turn / S::kStages - 1) % 2);
      const int bytes = min(kStageBlocks, blocks - stage * kStageBlocks) * static_cast<int>(kFragmentBytes);
      if (lane == 0) {
        expect_bytes(stages.full(slot), tiles * bytes + S::kTokenBytes);
        copy_box_to_both(stages.tokens(slot) + rank * kTokenRows * kStageCols, map,
                         {stage * kStageCols, tile.column * S::kCols + rank * kTokenRows}, stages.full(slot));
      }
      __syncwarp();
      if (lane < tiles) {
        copy_bulk(stages.weights(slot) + lane * kTileStageBytes,
                  weights + static_cast<std::int64_t>(stage) * kTileStageBytes, bytes, stages.full(slot));
      }
    }
  }
}

/// Two warpgroups, of 64 rows each.
template <bool kA16>
__device__ __forceinline__ void consume(const Task& task, int rank, W8RStages<S> stages) {
  const LinearArgs& args = task.args;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int all = (args.w.cols + kStageCols - 1) / kStageCols;
  const int step = static_cast<int>(gridDim.x) / kBlocks;
  const auto release = [&](int turn) {
    if (lane < kBlocks) arrive_at(stages.empty(turn % S::kStages), lane);
  };
  int turn = 0;
  wait_for_earlier_kernels();
  for (int index = static_cast<int>(blockIdx.x) / kBlocks; index < task.row_pairs * task.column_tiles;
       index += step) {
    const TileIndex tile = tile_index(index, task.row_pairs, task.column_tiles);
    int sums[S::kCols / 2] = {};
    multiply_stages<S>(sums, turn, all, stages, release);
    turn += all;
    const int row = (tile.row * kBlocks + rank) * S::kRows + warp * exact::kTileRows;
    store_tile<S::kCols, kA16>(args, corner_of(row, tile.column * S::kCols), sums);
  }
}

template <bool kA16>
__global__ void __launch_bounds__(kThreads, 1)
    w8r_large_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Task task) {
  extern __shared__ std::uint8_t shared[];
  const W8RStages<S> stages{{(shared_address(shared) + 1023U) & ~1023U}};
  const int rank = cluster_rank();
  stages.init(1, kBlocks * S::kWarpgroups * 4);
  cluster_sync();
  let_later_kernels_start();
  // The consumers need more registers each than a third of the multiprocessor's: the producer, a warpgroup of
  // which one warp works, gives its own up.
  if (threadIdx.x >= S::kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x < S::kConsumers + 32) produce(task, &map, rank, stages);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
    consume<kA16>(task, rank, stages);
  }
  cluster_sync();  // the other block may still arrive at this one's barriers
}

template <bool kA16>
void launch(const LinearArgs& args, Stream stream) {
  const auto kernel = w8r_large_kernel<kA16>;
  // Once a kernel: the attribute outlives the call.
  static const int configured = cudaFuncSetAttribute(
      reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
  check(configured, "cudaFuncSetAttribute");
  const int columns = product_columns(args);
  const Task task{args, (args.w.rows + kBlocks * S::kRows - 1) / (kBlocks * S::kRows),
                  (columns + S::kCols - 1) / S::kCols};
  const CUtensorMap map = byte_matrix_map(args.x.q, columns, args.w.cols, {kTokenRows, kStageCols});
  const int clusters = std::min(task.row_pairs * task.column_tiles, multiprocessors() / kBlocks);
  launch_early({dim3(static_cast<unsigned>(clusters * kBlocks)), kThreads, S::kSharedBytes, kBlocks}, stream,
               kernel, map, task);
}

}  // namespace

void linear_w8r_large(const LinearArgs& args, Stream stream) {
  args.x.format == ActivationFormat::kA16 ? launch<true>(args, stream) : launch<false>(args, stream);
}

}  // namespace fieldprint::backend::cuda
