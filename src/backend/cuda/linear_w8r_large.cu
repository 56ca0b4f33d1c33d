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

/// A warpgroup stores its 64 rows 32 tokens at a time through shared memory, so that whole lines go to
/// memory.
constexpr int kChunkTokens = 32;
constexpr int kGroupRows = kGroupTiles * exact::kTileRows;
/// Floats from a token to the next: 8·t + g, as the lanes of a warp write them, are different banks.
template <bool kA16>
constexpr int kChunkPitch = kA16 ? 72 : 68;
constexpr int kChunkBytes = kChunkTokens * kChunkPitch<true> * 4;
constexpr int kSharedBytes = S::kSharedBytes + S::kWarpgroups * kChunkBytes;

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

/// Where a warpgroup stores: its first row, and the tile's first token.
struct Origin {
  int row;
  int token;
};

/// What a lane has of a chunk, scaled: kPoints tokens of rows g and g + 8 of its warp.
template <bool kA16>
struct ChunkPoints {
  static constexpr int kGroupTokens = kA16 ? 1 : 2;  ///< of a lane in eight product columns
  static constexpr int kPoints = kChunkTokens / 4;
  float y[kPoints][2];

  static __device__ int token(int point) {
    const int t = static_cast<int>(threadIdx.x) % 4;
    return kA16 ? 4 * point + t : 8 * (point / 2) + 2 * t + point % 2;
  }

  __device__ ChunkPoints(const LinearArgs& args, Origin origin, float2 row_scale, const int* sums) {
    float scale[kPoints];
#pragma unroll
    for (int i = 0; i < kPoints; ++i)
      scale[i] = __ldg(args.x.scale + min(origin.token + token(i), args.tokens - 1));
#pragma unroll
    for (int i = 0; i < kPoints; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int* pair = sums + i / kGroupTokens * 4 + half * 2;
        const float dot = kA16 ? __fmaf_rn(__int2float_rn(pair[0]), 256.0F, __int2float_rn(pair[1]))
                               : __int2float_rn(pair[i % 2]);
        y[i][half] = __fmul_rn(dot, __fmul_rn(scale[i], half == 0 ? row_scale.x : row_scale.y));
      }
    }
  }

  /// To `chunk` [token][row].
  __device__ void write(float* chunk) const {
    const int warp = static_cast<int>(threadIdx.x) / 32 % 4;
    const int g = static_cast<int>(threadIdx.x) % 32 / 4;
    float* out = chunk + warp * exact::kTileRows + g;
#pragma unroll
    for (int i = 0; i < kPoints; ++i) {
      out[token(i) * kChunkPitch<kA16>] = y[i][0];
      out[token(i) * kChunkPitch<kA16> + 8] = y[i][1];
    }
  }
};

__device__ __forceinline__ float4 add(float4 a, float4 b) {
  return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
}

/// A chunk as vectors of four rows: 16 lanes a token.
struct ChunkVectors {
  static constexpr int kCount = kChunkTokens / 8;

  __device__ ChunkVectors(const LinearArgs& args, Origin origin) : tokens_(args.tokens - origin.token) {
    first_ = static_cast<int>(threadIdx.x) % 128 / 16;
    row_ = static_cast<int>(threadIdx.x) % 16 * 4;
    out_ = args.y + static_cast<std::int64_t>(origin.token + first_) * args.y_stride + origin.row + row_;
    stride_ = 8 * args.y_stride;
  }
  __device__ bool has(int i) const { return first_ + 8 * i < tokens_; }
  __device__ float4* out(int i) const { return reinterpret_cast<float4*>(out_ + i * stride_); }
  __device__ float4 value(const float* chunk, int i, int pitch) const {
    return *reinterpret_cast<const float4*>(chunk + (first_ + 8 * i) * pitch + row_);
  }

 private:
  int tokens_;
  int first_;
  int row_;
  float* out_;
  std::int64_t stride_;
};

struct OldVectors {
  float4 values[ChunkVectors::kCount];

  __device__ void load(const ChunkVectors& part) {
#pragma unroll
    for (int i = 0; i < ChunkVectors::kCount; ++i) {
      if (part.has(i)) values[i] = *part.out(i);
    }
  }
};

__device__ __forceinline__ void warpgroup_sync() {
  asm volatile("bar.sync %0, 128;" ::"r"(1 + static_cast<int>(threadIdx.x) / 128) : "memory");
}

/// A chunk by single floats, for rows that are no whole vectors or whose end is near.
__device__ void store_floats(const LinearArgs& args, Origin origin, const float* chunk, int pitch) {
  const int thread = static_cast<int>(threadIdx.x) % 128;
  for (int i = thread; i < kChunkTokens * kGroupRows; i += 128) {
    const int token = i / kGroupRows;
    const int row = i % kGroupRows;
    if (origin.token + token >= args.tokens || origin.row + row >= args.w.rows) continue;
    store(args, origin.token + token, origin.row + row, chunk[token * pitch + row]);
  }
}

template <bool kA16>
__device__ __forceinline__ void store_warpgroup(const LinearArgs& args, Origin origin,
                                                const int (&sums)[S::kCols / 2], float* chunk) {
  constexpr int kChunks = S::kCols / (kA16 ? 2 : 1) / kChunkTokens;
  constexpr int kChunkSums = S::kCols / 2 / kChunks;
  constexpr int kPitch = kChunkPitch<kA16>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 % 4 * exact::kTileRows;
  const float2 row_scale = row_scales(args, origin.row + warp_row + lane / 4);
  const bool vectors = origin.row + kGroupRows <= args.w.rows && args.y_stride % 4 == 0 &&
                       reinterpret_cast<std::uintptr_t>(args.y) % 16 == 0;
  const bool adds = args.accumulate && vectors;
  const auto origin_of = [&](int c) { return Origin{origin.row, origin.token + c * kChunkTokens}; };
  // What is added to is read a chunk ahead.
  OldVectors old[2];
  if (adds) old[0].load(ChunkVectors(args, origin_of(0)));
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const ChunkPoints<kA16> points(args, origin_of(c), row_scale, sums + c * kChunkSums);
    warpgroup_sync();  // the chunk before has been read
    points.write(chunk);
    warpgroup_sync();
    if (adds && c + 1 < kChunks) old[(c + 1) % 2].load(ChunkVectors(args, origin_of(c + 1)));
    if (!vectors) {
      store_floats(args, origin_of(c), chunk, kPitch);
      continue;
    }
    const ChunkVectors part(args, origin_of(c));
#pragma unroll
    for (int i = 0; i < ChunkVectors::kCount; ++i) {
      if (!part.has(i)) continue;
      const float4 value = part.value(chunk, i, kPitch);
      *part.out(i) = adds ? add(old[c % 2].values[i], value) : value;
    }
  }
}

/// Two warpgroups, of 64 rows each.
template <bool kA16>
__device__ __forceinline__ void consume(const Task& task, int rank, W8RStages<S> stages, float* chunks) {
  const LinearArgs& args = task.args;
  const int warpgroup = static_cast<int>(threadIdx.x) / 128;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int all = (args.w.cols + kStageCols - 1) / kStageCols;
  const int step = static_cast<int>(gridDim.x) / kBlocks;
  float* chunk = chunks + warpgroup * (kChunkBytes / 4);
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
    const Origin origin{(tile.row * kBlocks + rank) * S::kRows + warpgroup * kGroupRows,
                        tile.column * S::kCols / (kA16 ? 2 : 1)};
    store_warpgroup<kA16>(args, origin, sums, chunk);
  }
}

/// 160 registers a thread, of the 168 that there are, leave a warp's worth of 32 in each part of the
/// multiprocessor: digests go on beside.
template <bool kA16>
__global__ void __maxnreg__(160)
    w8r_large_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Task task) {
  extern __shared__ std::uint8_t shared[];
  const std::uint32_t raw = shared_address(shared);
  const W8RStages<S> stages{{(raw + 1023U) & ~1023U}};
  // Behind the stages and their barriers, the last of which ends the tile's bytes but for the alignment.
  auto* chunks = reinterpret_cast<float*>(shared + (stages.base - raw) + (S::kSharedBytes - 1024));
  const int rank = cluster_rank();
  stages.init(1, kBlocks * S::kWarpgroups * 4);
  cluster_sync();
  let_later_kernels_start();
  // The consumers need more registers each than a third of the block's: the producer, a warpgroup of
  // which one warp works, gives its own up.
  if (threadIdx.x >= S::kConsumers) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (threadIdx.x < S::kConsumers + 32) produce(task, &map, rank, stages);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    consume<kA16>(task, rank, stages, chunks);
  }
  cluster_sync();  // the other block may still arrive at this one's barriers
}

template <bool kA16>
void launch(const LinearArgs& args, Stream stream) {
  const auto kernel = w8r_large_kernel<kA16>;
  // Once a kernel: the attribute outlives the call.
  static const int configured = cudaFuncSetAttribute(
      reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  check(configured, "cudaFuncSetAttribute");
  const int columns = product_columns(args);
  const Task task{args, (args.w.rows + kBlocks * S::kRows - 1) / (kBlocks * S::kRows),
                  (columns + S::kCols - 1) / S::kCols};
  const CUtensorMap map = byte_matrix_map(args.x.q, columns, args.w.cols, {kTokenRows, kStageCols});
  const int clusters = std::min(task.row_pairs * task.column_tiles, multiprocessors() / kBlocks);
  launch_early({dim3(static_cast<unsigned>(clusters * kBlocks)), kThreads, kSharedBytes, kBlocks}, stream,
               kernel, map, task);
}

}  // namespace

void linear_w8r_large(const LinearArgs& args, Stream stream) {
  args.x.format == ActivationFormat::kA16 ? launch<true>(args, stream) : launch<false>(args, stream);
}

}  // namespace fieldprint::backend::cuda
