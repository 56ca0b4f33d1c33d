#include "backend/cuda/attention_columns.cuh"
#include "backend/cuda/attention_feeder.cuh"
#include "backend/cuda/attention_tile.cuh"
#include "backend/cuda/launch.cuh"

namespace fieldprint::backend::cuda {
namespace {

/// Where the warps of a block, each in its turn, append the chunks of a team item to its row. So many rows
/// are read at once that states of single chunks would cost more than waiting for one's turn.
template <int kPad>
struct Team {
  std::uint8_t* memory;
  int member;
  int members;
  int lane;
  std::uint32_t parity = 0;

  __device__ float4* row() const { return reinterpret_cast<float4*>(memory) + lane; }
  __device__ float4* softmax() const { return row() + kPad / 8 * 32; }
  __device__ std::uint64_t* turns() const {
    return reinterpret_cast<std::uint64_t*>(memory) + (kPad / 8 + 1) * 64;
  }
  /// By one lane of the block.
  __device__ void start() const {
    for (int i = 0; i < members; ++i) barrier_init(turns() + i, kArrivalsOfWarp);
    for (int i = 0; i < kArrivalsOfWarp; ++i) barrier_arrive(turns());
  }
  __device__ void wait_turn() {
    barrier_wait(turns() + member, parity);
    parity ^= 1U;
  }
  __device__ void pass_turn() const { arrive_as_warp(turns() + (member + 1) % members, lane == 0); }
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
      const float reference = seen ? __fmul_rn(__int2float_rn(maximum[r]), rows_[r].unit) : no_reference();
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
    if (has_row_) append_to_row(row_);
    if (last) {
      store();
      return;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      row_reference_[r] = chunk_.reference[r];
      row_denominator_[r] = chunk_.denominator[r];
    }
    keep(row_);
    has_row_ = true;
  }

  /// After tile t, the last one of a chunk of a team item.
  __device__ void end_team_chunk(int t, Team<kPad>& team) {
    team.wait_turn();
    if (t / exact::kChunkTiles != item_.first_tile / exact::kChunkTiles) {
      const float4 softmax = *team.softmax();
      row_reference_[0] = softmax.x;
      row_reference_[1] = softmax.y;
      row_denominator_[0] = softmax.z;
      row_denominator_[1] = softmax.w;
      append_to_row(team.row());
    }
    if (t + 1 == item_.end_tile) {
      team.pass_turn();
      store();
      return;
    }
    *team.softmax() =
        make_float4(chunk_.reference[0], chunk_.reference[1], chunk_.denominator[0], chunk_.denominator[1]);
    keep(team.row());
    team.pass_turn();
  }

 private:
  __device__ int group() const { return args_.attention.heads / args_.attention.kv_heads; }

  /// The outputs of the chunk become the row's, and a chunk begins.
  __device__ void keep(float4* row) {
#pragma unroll
    for (int b = 0; b < Tile::kBlocks; ++b) {
      const float(&o)[4] = chunk_.output[b];
      row[32 * b] = make_float4(o[0], o[1], o[2], o[3]);
    }
    chunk_.clear();
  }

  /// Leaves the row with the chunk appended where the chunk was.
  __device__ void append_to_row(const float4* row) {
    Fold by[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      by[r] = fold_references(row_reference_[r], chunk_.reference[r]);
      chunk_.reference[r] = row_reference_[r];
      chunk_.denominator[r] = fold(row_denominator_[r], chunk_.denominator[r], by[r]);
    }
#pragma unroll
    for (int b = 0; b < Tile::kBlocks; ++b) {
      const float4 mine = row[32 * b];
      float(&o)[4] = chunk_.output[b];
      o[0] = fold(mine.x, o[0], by[0]);
      o[1] = fold(mine.y, o[1], by[0]);
      o[2] = fold(mine.z, o[2], by[1]);
      o[3] = fold(mine.w, o[3], by[1]);
    }
  }

  /// From the states of the rows' whole contexts to their results: the sink comes first, and there are no
  /// anchors.
  __device__ void finish() {
    const AttentionArgs& args = args_.attention;
    const std::int32_t dim = tile_.dim();
    const std::int64_t block = args_.plan.queries()[item_.first_query].sink_block;
    const std::uint8_t* page = args.kv.pool + block * args.kv.block_stride + args.kv.layer_offset +
                               static_cast<std::int64_t>(kv_head_) * page_size(dim);
    const float* factors = args.scales.sink + 4 * kv_head_;
    std::int32_t dot[2];
    tile_.row_products(page, dot);
    bool seen[2];
    Fold by[2];
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // Without anchors a query sees as many tokens of the context as there are positions before it.
      seen[r] = args.window == 0 || rows_[r].last < args.window;
      float reference =
          seen[r] ? __fmul_rn(__fmul_rn(__int2float_rn(dot[r]), rows_[r].unit), factors[kSinkKeyScale])
                  : no_reference();
      by[r] = fold_references(reference, chunk_.reference[r]);
      const float sink = seen[r] ? static_cast<float>(exact::kLargestWeight) : kNothing;
      inverse[r] = __frcp_rn(fold(sink, chunk_.denominator[r], by[r]));
    }
    const int own = 2 * tile_.c();
    const std::uint8_t* values = page + exact::kPageTokens * (dim + own);
    const float* scales = args.scales.v_scale + kv_head_ * dim + own;
#pragma unroll
    for (int b = 0; b < Tile::kBlocks; ++b) {
      if (!kExact && 8 * b >= dim) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int value = static_cast<std::int8_t>(values[exact::kPageTokens * (8 * b + i)]);
        const float sink = __fmul_rn(__int2float_rn(exact::kLargestWeight * value), factors[kSinkValueScale]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float& output = chunk_.output[b][2 * r + i];
          output = fold(seen[r] ? sink : kNothing, output, by[r]);
          output = __fmul_rn(__fmul_rn(output, inverse[r]), scales[8 * b + i]);
        }
      }
    }
  }

  __device__ void store() {
    const bool is_result = item_.state < 0;
    if (is_result) finish();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = tile_.g() + 8 * r;
      if (row >= item_.queries * group()) continue;
      float* output = nullptr;
      if (is_result) {
        output = args_.attention.out + static_cast<std::int64_t>(query_rows_[r]) * tile_.dim();
        if (tile_.c() == 0) args_.attention.anchor_mass[query_rows_[r]] = 0.0F;
      } else {
        const std::int64_t state = item_.state + row / group();
        const std::int32_t head = kv_head_ * group() + row % group();
        output = args_.states.output(state, head);
        if (tile_.c() == 0) {
          *reinterpret_cast<float2*>(args_.states.softmax(state, head)) =
              make_float2(chunk_.reference[r], chunk_.denominator[r]);
        }
      }
      output += 2 * tile_.c();
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

/// Of a thread. With the smallest heads a part of the multiprocessor has three warps.
constexpr int column_registers(int pad) { return pad == 64 ? 168 : 255; }

template <int kPad, bool kExact>
__global__ void __maxnreg__(column_registers(kPad)) columns_kernel(const __grid_constant__ ColumnsArgs args) {
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
  Team<kPad> team{shared + warps * args.warp_bytes, warp, warps, lane};
  if (threadIdx.x == 0) team.start();
  __syncthreads();

  Feeder feeder(args, own, barriers, warp, warps);
  const Tile<kPad, kExact> tile{own, queries, dim, lane};
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
    const bool ends = at.tile + 1 == at.end;
    if (!feeder.is_team(at)) {
      worker.end_tile(at.tile, ends);
    } else if (ends) {
      worker.end_team_chunk(at.tile, team);
    }
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
  const int bytes = warps * args.warp_bytes + column_team_bytes(kPad);
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
