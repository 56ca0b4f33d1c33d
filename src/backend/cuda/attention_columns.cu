#include "backend/cuda/attention_columns.cuh"
#include "backend/cuda/attention_tile.cuh"
#include "backend/cuda/bulk_copy.cuh"
#include "backend/cuda/launch.cuh"

namespace fieldprint::backend::cuda {
namespace {

/// A tile of an item: item and KV head by number, and where the item ends.
struct Place {
  int index;
  int tile;
  int end;
};

/// Brings the tiles of a warp's items to shared memory, in order. There is room for one tile, K and V apart:
/// the next tile's keys arrive while this one's values are used. A warp begins with the item of its own number
/// and then takes the next that is left. Three loads that depend on each other lie between an item's number and
/// its pages; they are begun a tile ahead, each while the warp does something else.
class Feeder {
 public:
  __device__ Feeder(const ColumnsArgs& args, std::uint8_t* tile, std::uint64_t* barriers, int first, int warps)
      : args_(args),
        tile_(tile),
        barriers_(barriers),
        half_page_(static_cast<std::uint32_t>(page_size(args.attention.head_dim)) / 2),
        total_(args.plan.header->items * args.attention.kv_heads),
        warps_(warps),
        lane_(static_cast<int>(threadIdx.x) % 32) {
    next_.place.index = first;
    ahead_ = kTaken;
    start_next();
  }

  __device__ bool has() const { return place_.index < total_; }
  __device__ const Place& place() const { return place_; }
  /// Whether the tile's tokens are all of earlier steps.
  __device__ bool settled() const { return place_.tile < settled_; }

  /// Near the end of an item: takes the next one's number.
  __device__ void take() {
    if (ahead_ != kNone || place_.tile + 2 < place_.end) return;
    if (lane_ == 0) next_.place.index = warps_ + atomicAdd(args_.taken, 1);
    ahead_ = kTaken;
  }
  /// Finds that item, and then its first blocks.
  __device__ void find_item() {
    if (ahead_ != kTaken) return;
    next_.place.index = __shfl_sync(kAllLanes, next_.place.index, 0);
    if (next_.place.index < total_) {
      const PlannedItem& item = args_.plan.items()[next_.place.index / args_.attention.kv_heads];
      next_.place.tile = item.first_tile;
      next_.place.end = item.end_tile;
      next_.block = item.block;
      next_.settled = item.settled_tiles;
    }
    ahead_ = kFound;
  }
  __device__ void find_blocks() {
    if (ahead_ != kFound) return;
    if (next_.place.index < total_) next_.blocks = load_blocks(next_.block, next_.place);
    ahead_ = kReady;
  }

  __device__ void advance() {
    if (++place_.tile < place_.end) {
      if (window_ == 0) blocks_ = load_blocks(block_, place_);
      find_pages();
      return;
    }
    start_next();
  }

  __device__ void copy_keys() const { copy(0); }
  __device__ void copy_values() const { copy(1); }

 private:
  static constexpr int kWindow = 32 / exact::kTilePages;  // tiles whose blocks are read at once, a lane each
  enum Ahead { kNone, kTaken, kFound, kReady };
  struct Next {
    Place place;
    int block;
    int settled;
    std::int32_t blocks;
  };

  __device__ void start_next() {
    find_item();
    find_blocks();
    ahead_ = kNone;
    place_ = next_.place;
    if (!has()) return;
    settled_ = next_.settled;
    block_ = next_.block;
    blocks_ = next_.blocks;
    window_ = 0;
    find_pages();
  }

  __device__ std::int32_t load_blocks(int block, const Place& at) const {
    const int page = exact::kTilePages * at.tile + lane_;
    return page < exact::kTilePages * at.end ? args_.plan.blocks()[block + page] : 0;
  }

  __device__ void find_pages() {
    const std::uint8_t* from = args_.attention.kv.pool + args_.attention.kv.layer_offset +
                               static_cast<std::int64_t>(place_.index % args_.attention.kv_heads) * 2 * half_page_;
#pragma unroll
    for (int p = 0; p < exact::kTilePages; ++p) {
      const std::int64_t block = __shfl_sync(kAllLanes, blocks_, exact::kTilePages * window_ + p);
      pages_[p] = from + block * args_.attention.kv.block_stride;
    }
    window_ = (window_ + 1) % kWindow;
  }

  /// The keys (half 0) or the values (half 1) of both pages.
  __device__ void copy(std::uint32_t half) const {
    if (lane_ != 0) return;
    barrier_expect(barriers_ + half, exact::kTilePages * half_page_);
#pragma unroll
    for (std::uint32_t p = 0; p < exact::kTilePages; ++p) {
      bulk_copy_once(tile_ + (exact::kTilePages * half + p) * half_page_, pages_[p] + half * half_page_,
                     half_page_, barriers_ + half);
    }
  }

  const ColumnsArgs& args_;
  std::uint8_t* tile_;
  std::uint64_t* barriers_;
  std::uint32_t half_page_;
  int total_;
  int warps_;
  int lane_;
  Place place_{};
  int settled_ = 0;
  int block_ = 0;
  int window_ = 0;
  std::int32_t blocks_ = 0;
  const std::uint8_t* pages_[exact::kTilePages] = {};
  Ahead ahead_ = kNone;
  Next next_{};
};

/// A warp's work on one item.
template <int kPad, bool kExact>
class Worker {
 public:
  using Tile = cuda::Tile<kPad, kExact>;
  using State = typename Tile::State;

  __device__ Worker(const ColumnsArgs& args, const Tile& tile, uint4* queries, float4* row)
      : args_(args), tile_(tile), queries_(queries), row_(row + tile.lane) {}

  /// What the plan says of an item.
  __device__ void begin(int index) {
    item_ = args_.plan.items()[index / args_.attention.kv_heads];
    kv_head_ = index % args_.attention.kv_heads;
    const int rows = item_.queries * group();
    both_ = rows > 8;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = tile_.g() + 8 * r;
      query_rows_[r] = -1;
      rows_[r].first = 0;
      rows_[r].last = 0x7FFFFFFF;
      if (row >= rows) continue;
      const PlannedQuery& query = args_.plan.queries()[item_.first_query + row / group()];
      const SeenRange seen = seen_range(args_.attention.window, item_, query);
      rows_[r].first = seen.first;
      rows_[r].last = seen.last;
      query_rows_[r] = query.token * args_.attention.heads + kv_head_ * group() + row % group();
    }
    chunk_.clear();
    has_row_ = false;
  }

  /// Its queries. Rows that do not exist are zeros.
  __device__ void load_queries() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool exists = query_rows_[r] >= 0;
      const std::int8_t* q = args_.attention.q + static_cast<std::int64_t>(query_rows_[r]) * tile_.dim();
#pragma unroll
      for (int h = 0; h < Tile::kSlices; ++h) {
        const int at = 64 * h + 16 * tile_.c();
        uint4 words = make_uint4(0, 0, 0, 0);
        if (exists && at < tile_.dim()) words = *reinterpret_cast<const uint4*>(q + at);
        queries_[(2 * h + r) * 32 + tile_.lane] = words;
      }
      rows_[r].set_step(exists ? args_.attention.q_step[query_rows_[r]] : exact::kSmallestStep);
    }
  }

  __device__ void score() { tile_.products(scores_); }

  __device__ void weigh(int t) {
    const int start = t * exact::kTileTokens;
    bool partial = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      partial |= rows_[r].first > start || rows_[r].last < start + exact::kTileTokens;
    }
    partial = __any_sync(kAllLanes, partial);
    weights_ = {};
    std::int32_t maximum[2] = {kMaskedScore, kMaskedScore};
    maximum[0] = tile_.weigh(scores_, 0, rows_[0], start, partial, weights_);
    if (both_) maximum[1] = tile_.weigh(scores_, 1, rows_[1], start, partial, weights_);
    const Accumulators sum = Tile::sums(weights_);
    raised_ = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool seen = maximum[r] != kMaskedScore;
      const float reference =
          seen ? __fmul_rn(__int2float_rn(maximum[r]), rows_[r].unit) : no_reference();
      folds_[r] = fold_references(chunk_.reference[r], reference);
      // Weights 0 times -0: added to anything, that leaves it as it is.
      if (!seen) folds_[r] = {kNothing, false};
      chunk_.denominator[r] = fold(chunk_.denominator[r], __int2float_rn(sum.x[2 * r]), folds_[r]);
      raised_ |= folds_[r].raised;
    }
    raised_ = __any_sync(kAllLanes, raised_);
  }

  __device__ void add_values() {
    if (raised_) {
      tile_.template add_values<true>(weights_, folds_, both_, chunk_);
    } else {
      tile_.template add_values<false>(weights_, folds_, both_, chunk_);
    }
  }

  /// After tile t, the last one of the item or not: ends a chunk where one ends.
  __device__ void end_tile(int t, bool last) {
    if (!last && (item_.context == 0 || (t + 1) % exact::kChunkTiles != 0)) return;
    if (has_row_) append_to_row();
    if (last) {
      store();
      return;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row_reference_[r] = chunk_.reference[r];
      row_denominator_[r] = chunk_.denominator[r];
    }
#pragma unroll
    for (int b = 0; b < Tile::kBlocks; ++b) {
      const float(&o)[4] = chunk_.output[b];
      row_[32 * b] = make_float4(o[0], o[1], o[2], o[3]);
    }
    has_row_ = true;
    chunk_.clear();
  }

 private:
  __device__ int group() const { return args_.attention.heads / args_.attention.kv_heads; }

  /// Leaves the row with the chunk appended where the chunk was.
  __device__ void append_to_row() {
    Fold by[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      by[r] = fold_references(row_reference_[r], chunk_.reference[r]);
      chunk_.reference[r] = row_reference_[r];
      chunk_.denominator[r] = fold(row_denominator_[r], chunk_.denominator[r], by[r]);
    }
#pragma unroll
    for (int b = 0; b < Tile::kBlocks; ++b) {
      const float4 mine = row_[32 * b];
      float(&o)[4] = chunk_.output[b];
      o[0] = fold(mine.x, o[0], by[0]);
      o[1] = fold(mine.y, o[1], by[0]);
      o[2] = fold(mine.z, o[2], by[1]);
      o[3] = fold(mine.w, o[3], by[1]);
    }
  }

  __device__ void store() const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = tile_.g() + 8 * r;
      if (row >= item_.queries * group()) continue;
      const std::int64_t state = item_.state + row / group();
      const std::int32_t head = kv_head_ * group() + row % group();
      if (tile_.c() == 0) {
        *reinterpret_cast<float2*>(args_.states.softmax(state, head)) =
            make_float2(chunk_.reference[r], chunk_.denominator[r]);
      }
      float* output = args_.states.output(state, head) + 2 * tile_.c();
#pragma unroll
      for (int b = 0; b < Tile::kBlocks; ++b) {
        if (!kExact && 8 * b >= tile_.dim()) continue;
        *reinterpret_cast<float2*>(output + 8 * b) =
            make_float2(chunk_.output[b][2 * r], chunk_.output[b][2 * r + 1]);
      }
    }
  }

  const ColumnsArgs& args_;
  const Tile& tile_;
  uint4* queries_;
  float4* row_;  // [kBlocks][32 lanes]
  PlannedItem item_;
  int kv_head_;
  bool both_;
  int query_rows_[2];  // in q
  QueryRow rows_[2];
  typename Tile::Scores scores_;
  typename Tile::Weights weights_;
  Fold folds_[2];
  bool raised_;
  State chunk_;
  bool has_row_;
  float row_reference_[2];
  float row_denominator_[2];
};

/// Most warps of a block: those of the smallest head of the pad.
constexpr int columns_threads(int pad) { return 32 * column_warps(pad / 2 + 16); }

template <int kPad, bool kExact>
__global__ void __launch_bounds__(columns_threads(kPad), 1)
    columns_kernel(const __grid_constant__ ColumnsArgs args) {
  extern __shared__ __align__(128) std::uint8_t shared[];
  const int dim = kExact ? kPad : args.attention.head_dim;
  const int warps = static_cast<int>(blockDim.x) / 32;
  // From one lane, so that the compiler sees what is the same for the warp.
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  std::uint8_t* own = shared + warp * args.warp_bytes;
  uint4* queries = reinterpret_cast<uint4*>(own + exact::kTilePages * page_size(dim));
  float4* row = reinterpret_cast<float4*>(queries + kColumnRows * kPad / 16);
  std::uint64_t* barriers = reinterpret_cast<std::uint64_t*>(row + kColumnRows * kPad / 4);
  if (lane == 0) {
    barrier_init(barriers, 1);
    barrier_init(barriers + 1, 1);
    barrier_init_fence();
  }
  __syncwarp();

  Feeder feeder(args, own, barriers, warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x),
                warps * static_cast<int>(gridDim.x));
  const Tile<kPad, kExact> tile{own, own + page_size(dim), queries, dim, lane};
  Worker<kPad, kExact> worker(args, tile, queries, row);
  // Plan and settled pages are older than the kernels that may still run.
  const bool early = feeder.has() && feeder.settled();
  if (early) {
    feeder.copy_keys();
    feeder.copy_values();
  }
  if (feeder.has()) worker.begin(feeder.place().index);
  wait_for_earlier_kernels();
  let_later_kernels_start();
  if (!feeder.has()) return;
  if (!early) {
    feeder.copy_keys();
    feeder.copy_values();
  }
  worker.load_queries();
  std::uint32_t parity = 0;
  while (true) {
    const Place at = feeder.place();
    feeder.take();
    barrier_wait(barriers, parity);
    worker.score();
    __syncwarp();
    feeder.advance();
    if (feeder.has()) feeder.copy_keys();
    worker.weigh(at.tile);
    feeder.find_item();
    barrier_wait(barriers + 1, parity);
    worker.add_values();
    __syncwarp();
    if (feeder.has()) feeder.copy_values();
    feeder.find_blocks();
    worker.end_tile(at.tile, at.tile + 1 == at.end);
    if (!feeder.has()) return;
    if (feeder.place().index != at.index) {
      worker.begin(feeder.place().index);
      worker.load_queries();
    }
    parity ^= 1U;
  }
}

template <int kPad, bool kExact>
void launch(const ColumnsArgs& args, std::int32_t blocks, Stream stream) {
  const std::int32_t dim = args.attention.head_dim;
  const int warps = column_warps(dim);
  const int bytes = warps * args.warp_bytes;
  const auto kernel = columns_kernel<kPad, kExact>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "attention memory");
  launch_early({dim3(static_cast<unsigned>(blocks)), 32 * warps, bytes, 1}, stream, kernel, args);
}

}  // namespace

void launch_columns(const ColumnsArgs& args, std::int32_t blocks, Stream stream) {
  const std::int32_t dim = args.attention.head_dim;
  if (dim == 64) return launch<64, true>(args, blocks, stream);
  if (dim == 128) return launch<128, true>(args, blocks, stream);
  if (dim == 256) return launch<256, true>(args, blocks, stream);
  if (dim < 64) return launch<64, false>(args, blocks, stream);
  if (dim < 128) return launch<128, false>(args, blocks, stream);
  return launch<256, false>(args, blocks, stream);
}

}  // namespace fieldprint::backend::cuda
