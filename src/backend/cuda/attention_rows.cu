#include "backend/cuda/attention_rows.cuh"
#include "backend/cuda/attention_rows.h"
#include "backend/cuda/bulk_copy.cuh"

namespace fieldprint::backend::cuda {
namespace {

constexpr int kWarps = kRowsOfItem / 16;
constexpr int kThreads = 32 * kWarps;
constexpr int kMaxStages = 4;

/// Pages of the block's item, in order, through a ring of stages that all warps read.
class Ring {
 public:
  __device__ Ring(const RowsArgs& args, const PlannedItem& item, std::int32_t kv_head, std::uint8_t* pages,
                  std::uint64_t* barriers)
      : pages_(pages),
        full_(barriers),
        empty_(barriers + kMaxStages),
        bytes_(static_cast<std::uint32_t>(page_size(args.attention.head_dim))),
        stages_(args.stages),
        from_(args.attention.kv.pool + args.attention.kv.layer_offset +
              static_cast<std::int64_t>(kv_head) * bytes_),
        block_stride_(args.attention.kv.block_stride),
        blocks_(args.plan.blocks() + item.block),
        tile_(item.first_tile),
        end_(item.end_tile) {}

  __device__ void init() {
    for (int s = 0; s < stages_; ++s) {
      barrier_init(full_ + s, 1);
      barrier_init(empty_ + s, kWarps);
    }
    barrier_init_fence();
  }

  /// One thread fills the ring, and then each stage that has become empty.
  __device__ void fill() {
    block_ = blocks_[tile_];
    for (int s = 0; s < stages_; ++s) copy(s);
  }
  __device__ void refill(int stage, std::uint32_t parity) {
    if (tile_ >= end_) return;
    barrier_wait(empty_ + stage, parity);
    copy(stage);
  }

  __device__ const std::uint8_t* wait(int stage, std::uint32_t parity) {
    barrier_wait(full_ + stage, parity);
    return pages_ + stage * bytes_;
  }
  __device__ void release(int stage) { barrier_arrive(empty_ + stage); }

 private:
  __device__ void copy(int stage) {
    if (tile_ >= end_) return;
    barrier_expect(full_ + stage, bytes_);
    bulk_copy(pages_ + stage * bytes_, from_ + block_ * block_stride_, bytes_, full_ + stage);
    ++tile_;
    if (tile_ < end_) block_ = blocks_[tile_];
  }

  std::uint8_t* pages_;
  std::uint64_t* full_;
  std::uint64_t* empty_;
  std::uint32_t bytes_;
  int stages_;
  const std::uint8_t* from_;
  std::int64_t block_stride_;
  const std::int32_t* blocks_;
  int tile_;
  int end_;
  std::int64_t block_ = 0;
};

/// Where a block's row lies; query null where there is no such row.
struct Place {
  const PlannedQuery* query;
  std::int64_t state;
  std::int32_t head;
};

__device__ Place place_of(const RowsArgs& args, const PlannedItem& item, std::int32_t kv_head, int row) {
  const std::int32_t group = args.attention.heads / args.attention.kv_heads;
  const std::int32_t query = row / group;
  if (query >= item.queries) return {nullptr, 0, 0};
  return {args.plan.queries() + item.first_query + query, item.state + query, kv_head * group + row % group};
}

template <typename Tile>
__device__ void load_queries(const RowsArgs& args, const PlannedItem& item, const Place (&places)[2],
                             const Tile& tile, typename Tile::Queries& queries) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    typename Tile::Row& row = queries.rows[r];
    const PlannedQuery* query = places[r].query;
    row = {0.0F, 0, 0x7FFFFFFF};
    std::int64_t index = 0;
    if (query != nullptr) {
      index = static_cast<std::int64_t>(query->token) * args.attention.heads + places[r].head;
      row.scale = args.attention.q_scale[index];
      const SeenRange seen = seen_range(args.plan, args.attention.window, item, *query);
      row.first = seen.first;
      row.last = seen.last;
    }
#pragma unroll
    for (int h = 0; h < Tile::kSlices; ++h) {
      const int at = 64 * h + 16 * tile.c;
      uint4 words = make_uint4(0, 0, 0, 0);
      if (query != nullptr && at < tile.dim) {
        words = *reinterpret_cast<const uint4*>(args.attention.q + index * tile.dim + at);
      }
      queries.q[h][r][0] = words.x;
      queries.q[h][r][1] = words.y;
      queries.q[h][r][2] = words.z;
      queries.q[h][r][3] = words.w;
    }
  }
}

/// The states of chunks, groups and the row. The chunk's is in registers, the group's in shared memory, each
/// thread with a column of its own, and the row's where the fold will read it.
template <typename Tile>
class Folder {
 public:
  static constexpr int kFloats = Tile::kOutputs + 4;
  typename Tile::State chunk;

  __device__ Folder(const StateView& states, const Place (&places)[2], const Tile& tile, float* group)
      : states_(states), places_(places), tile_(tile), group_(group) {
    chunk.clear();
  }

  __device__ void end_chunk() {
    if (has_group_) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        factors_[r] = merge_factors(at(r), chunk.maximum[r]);
        at(r) = factors_[r].maximum;
        at(2 + r) = merge(at(2 + r), chunk.denominator[r], factors_[r]);
      }
#pragma unroll
      for (int i = 0; i < Tile::kOutputs; ++i) {
        at(4 + i) = merge(at(4 + i), chunk.output[i], factors_[Tile::row_of(i)]);
      }
    } else {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        at(r) = chunk.maximum[r];
        at(2 + r) = chunk.denominator[r];
      }
#pragma unroll
      for (int i = 0; i < Tile::kOutputs; ++i) at(4 + i) = chunk.output[i];
    }
    has_group_ = true;
    chunk.clear();
  }

  __device__ void end_group() {
    if (!has_group_) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (places_[r].query != nullptr) store_row(r);
    }
    has_group_ = false;
    has_row_ = true;
  }

 private:
  __device__ float& at(int i) { return group_[i * kThreads]; }

  __device__ void store_row(int r) {
    float* softmax = states_.softmax(places_[r].state, places_[r].head);
    float* output = states_.output(places_[r].state, places_[r].head);
    MergeFactors factors{at(r), 0.0F, 1.0F};
    float denominator = at(2 + r);
    if (has_row_) {
      factors = merge_factors(softmax[0], at(r));
      denominator = merge(softmax[1], denominator, factors);
    }
    // Four lanes have read it.
    __syncwarp(0xFU << (4 * tile_.g));
    if (tile_.c == 0) {
      softmax[0] = factors.maximum;
      softmax[1] = denominator;
    }
#pragma unroll
    for (int i = 2 * r; i < Tile::kOutputs; i += 4) {
      const int channel = Tile::channel(i, tile_.c);
      if (channel >= tile_.dim) continue;
      float2* pair = reinterpret_cast<float2*>(output + channel);
      float2 next = make_float2(at(4 + i), at(5 + i));
      if (has_row_) {
        const float2 mine = *pair;
        next.x = merge(mine.x, next.x, factors);
        next.y = merge(mine.y, next.y, factors);
      }
      *pair = next;
    }
  }

  const StateView& states_;
  const Place (&places_)[2];
  const Tile& tile_;
  float* group_;
  bool has_group_ = false;
  bool has_row_ = false;
  MergeFactors factors_[2];
};

template <int kPad, bool kExact>
__global__ void __launch_bounds__(kThreads, 1) rows_kernel(const __grid_constant__ RowsArgs args) {
  using Tile = RowTile<kPad, kExact>;
  extern __shared__ __align__(128) std::uint8_t shared[];
  const int dim = kExact ? kPad : args.attention.head_dim;
  const std::int32_t index = static_cast<std::int32_t>(blockIdx.x);
  const PlannedItem item = args.plan.row_items()[index / args.attention.kv_heads];
  const std::int32_t kv_head = index % args.attention.kv_heads;
  std::uint8_t* pages = shared;
  std::uint64_t* barriers = reinterpret_cast<std::uint64_t*>(shared + args.stages * page_size(dim));
  float* group = reinterpret_cast<float*>(barriers + 2 * kMaxStages) + threadIdx.x;

  Ring ring(args, item, kv_head, pages, barriers);
  if (threadIdx.x == 0) ring.init();
  __syncthreads();
  if (threadIdx.x == 0) ring.fill();

  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Tile tile{pages, dim, lane / 4, lane % 4};
  const Place places[2] = {place_of(args, item, kv_head, 16 * warp + tile.g),
                           place_of(args, item, kv_head, 16 * warp + tile.g + 8)};
  typename Tile::Queries queries;
  load_queries(args, item, places, tile, queries);
  // The warp's own tiles: what none of its rows sees is not worth computing.
  std::int32_t first = 0x7FFFFFFF;
  std::int32_t last = 0;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (places[r].query == nullptr) continue;
    first = min(first, queries.rows[r].first);
    last = max(last, queries.rows[r].last);
  }
  first = __reduce_min_sync(kAllLanes, first);
  last = __reduce_max_sync(kAllLanes, last);

  Folder<Tile> folder(args.states, places, tile, group);
  int stage = 0;
  std::uint32_t parity = 0;
  for (int t = item.first_tile; t < item.end_tile; ++t) {
    const int start = t * exact::kPageTokens;
    tile.page = ring.wait(stage, parity);
    // The stage before: by now the other warps have left it too, or soon will.
    if (threadIdx.x == 0 && t > item.first_tile) {
      ring.refill(stage == 0 ? args.stages - 1 : stage - 1, stage == 0 ? parity ^ 1U : parity);
    }
    __syncwarp();
    if (start < last && start + exact::kPageTokens > first) tile.attend(queries, start, folder.chunk);
    __syncwarp();
    if (lane == 0) ring.release(stage);
    if (++stage == args.stages) {
      stage = 0;
      parity ^= 1U;
    }
    const bool end = t + 1 == item.end_tile;
    if (end || (item.context != 0 && (t + 1) % exact::kChunkTiles == 0)) folder.end_chunk();
    if (end || (item.context != 0 && (t + 1) % exact::kGroupTiles == 0)) folder.end_group();
  }
}

constexpr int kSharedBytes = 227 * 1024;

template <int kPad, bool kExact>
void launch(RowsArgs args, std::int32_t items, Stream stream) {
  const int page = static_cast<int>(page_bytes(args.attention.head_dim));
  const int fixed = 2 * kMaxStages * 8 +
                    Folder<RowTile<kPad, kExact>>::kFloats * kThreads * static_cast<int>(sizeof(float));
  args.stages = min((kSharedBytes - fixed) / page, kMaxStages);
  const int bytes = fixed + args.stages * page;
  const auto kernel = rows_kernel<kPad, kExact>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "attention memory");
  kernel<<<static_cast<unsigned>(items * args.attention.kv_heads), kThreads, static_cast<std::size_t>(bytes),
           stream>>>(args);
  check_launch("attention rows");
}

}  // namespace

void launch_rows(const RowsArgs& args, std::int32_t items, Stream stream) {
  const std::int32_t dim = args.attention.head_dim;
  if (dim == 64) return launch<64, true>(args, items, stream);
  if (dim == 128) return launch<128, true>(args, items, stream);
  if (dim == 256) return launch<256, true>(args, items, stream);
  if (dim < 64) return launch<64, false>(args, items, stream);
  if (dim < 128) return launch<128, false>(args, items, stream);
  return launch<256, false>(args, items, stream);
}

}  // namespace fieldprint::backend::cuda
