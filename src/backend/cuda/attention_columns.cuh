#pragma once

#include <cstdint>

#include "backend/cuda/attention_state.cuh"
#include "backend/cuda/attention_tile.cuh"
#include "backend/cuda/bulk_copy.cuh"
#include "backend/cuda/device.h"
#include "backend/cuda/plan.h"
#include "backend/ops.h"

/// Items of the plan by single warps, each on its own stream of pages: bound by memory for decode steps. The
/// grid is as large as the device; a warp takes every n-th item.
namespace fieldprint::backend::cuda {

struct ColumnsArgs {
  AttentionArgs attention;
  PlanView plan;
  StateView states;
  std::int32_t buffers;  ///< pages of each warp in shared memory
};

namespace {

/// Brings the pages of a warp's items to shared memory, in order.
class Feeder {
 public:
  __device__ Feeder(const ColumnsArgs& args, std::uint8_t* pages, std::uint64_t* barriers, int first,
                    int stride)
      : args_(args),
        pages_(pages),
        barriers_(barriers),
        bytes_(static_cast<std::uint32_t>(page_size(args.attention.head_dim))),
        total_(args.plan.header->items * args.attention.kv_heads),
        next_(first),
        stride_(stride),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  /// Begins to copy the next page, if there is one, into the next buffer.
  __device__ void feed() {
    if (tile_ == end_) {
      if (next_ >= total_) return;
      const PlannedItem& item = args_.plan.items()[next_ / args_.attention.kv_heads];
      from_ = args_.attention.kv.pool + args_.attention.kv.layer_offset +
              static_cast<std::int64_t>(next_ % args_.attention.kv_heads) * bytes_;
      next_ += stride_;
      tile_ = item.first_tile;
      end_ = item.end_tile;
      blocks_ = args_.plan.blocks() + item.block;
      window_ = 0;
    }
    if (window_ == 0) block_ = tile_ + lane_ < end_ ? blocks_[tile_ + lane_] : 0;
    const std::int64_t block = __shfl_sync(kAllLanes, block_, window_);
    if (lane_ == 0) {
      barrier_expect(barriers_ + slot_, bytes_);
      bulk_copy(pages_ + slot_ * bytes_, from_ + block * args_.attention.kv.block_stride, bytes_,
                barriers_ + slot_);
    }
    window_ = (window_ + 1) % 32;
    ++tile_;
    slot_ = slot_ + 1 == args_.buffers ? 0 : slot_ + 1;
  }

 private:
  const ColumnsArgs& args_;
  std::uint8_t* pages_;
  std::uint64_t* barriers_;
  std::uint32_t bytes_;
  int total_;
  int next_;
  int stride_;
  int lane_;
  int tile_ = 0;
  int end_ = 0;
  int window_ = 0;
  int slot_ = 0;
  std::int32_t block_ = 0;
  const std::int32_t* blocks_ = nullptr;
  const std::uint8_t* from_ = nullptr;
};

template <typename Tile>
__device__ void load_queries(const ColumnsArgs& args, const PlannedItem& item, std::int32_t kv_head, int set,
                             const Tile& tile, typename Tile::Queries& queries) {
  const std::int32_t group = args.attention.heads / args.attention.kv_heads;
  const auto row_of = [&](int column, const PlannedQuery*& query) -> std::int64_t {
    if (column >= item.queries * group) return -1;
    query = args.plan.queries() + item.first_query + column / group;
    return static_cast<std::int64_t>(query->token) * args.attention.heads + kv_head * group + column % group;
  };
  const PlannedQuery* query = nullptr;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    typename Tile::Row& row = queries.rows[e];
    const std::int64_t index = row_of(8 * set + Tile::column(e, tile.c), query);
    row = {0.0F, 0, 0x7FFFFFFF};
    if (index < 0) continue;
    row.scale = args.attention.q_scale[index];
    const SeenRange seen = seen_range(args.plan, args.attention.window, item, *query);
    row.first = seen.first;
    row.last = seen.last;
  }
  const std::int64_t index = row_of(8 * set + Tile::fragment_column(tile.g), query);
#pragma unroll
  for (int h = 0; h < Tile::kSlices; ++h) {
    const int at = 64 * h + 16 * tile.c;
    uint4 words = make_uint4(0, 0, 0, 0);
    if (index >= 0 && at < tile.dim) {
      words = *reinterpret_cast<const uint4*>(args.attention.q + index * tile.dim + at);
    }
    queries.q[h][0] = words.x;
    queries.q[h][1] = words.y;
    queries.q[h][2] = words.z;
    queries.q[h][3] = words.w;
  }
}

template <typename Tile>
__device__ void store_state(const ColumnsArgs& args, const PlannedItem& item, std::int32_t kv_head, int set,
                            const Tile& tile, const typename Tile::State& state) {
  const std::int32_t group = args.attention.heads / args.attention.kv_heads;
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int column = 8 * set + Tile::column(e, tile.c);
    if (column >= item.queries * group) continue;
    const std::int64_t index = item.state + column / group;
    const std::int32_t head = kv_head * group + column % group;
    if (tile.g == 0 && (!Tile::kNarrow || tile.c < 2)) {
      float* softmax = args.states.softmax(index, head);
      softmax[0] = state.maximum[e];
      softmax[1] = state.denominator[e];
    }
    float* output = args.states.output(index, head);
#pragma unroll
    for (int i = e; i < Tile::kOutputs; i += 2) {
      const int channel = Tile::channel(i, tile.g, tile.c);
      if (channel < tile.dim) output[channel] = state.output[i];
    }
  }
}

/// Warps of a block, as registers and pages allow.
constexpr int columns_threads(int pad) { return pad == 64 ? 384 : pad == 128 ? 192 : 128; }

template <int kPad, int kColumns, bool kExact>
__global__ void __launch_bounds__(columns_threads(kPad), 1)
    columns_kernel(const __grid_constant__ ColumnsArgs args) {
  using Tile = Tile<kPad, kColumns, kExact>;
  extern __shared__ __align__(128) std::uint8_t shared[];
  // The fold may start and wait: what it needs besides the states is there already.
  asm volatile("griddepcontrol.launch_dependents;");
  const int dim = kExact ? kPad : args.attention.head_dim;
  const int page = page_size(dim);
  const int warps = static_cast<int>(blockDim.x) / 32;
  // From one lane, so that the compiler sees what is the same for the warp.
  const int warp = __shfl_sync(kAllLanes, static_cast<int>(threadIdx.x) / 32, 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  std::uint8_t* pages = shared + warp * args.buffers * page;
  std::uint8_t* digits = shared + warps * args.buffers * page + warp * Tile::kDigitBytes;
  std::uint64_t* barriers =
      reinterpret_cast<std::uint64_t*>(shared + warps * (args.buffers * page + Tile::kDigitBytes)) +
      warp * args.buffers;
  if (lane == 0) {
    for (int b = 0; b < args.buffers; ++b) barrier_init(barriers + b, 1);
    barrier_init_fence();
  }
  __syncwarp();

  const int stride = static_cast<int>(gridDim.x) * warps;
  const int begin = warp * static_cast<int>(gridDim.x) + static_cast<int>(blockIdx.x);
  const int total = args.plan.header->items * args.attention.kv_heads;
  Feeder feeder(args, pages, barriers, begin, stride);
  for (int b = 0; b < args.buffers; ++b) feeder.feed();

  Tile tile{pages, digits, dim, lane / 4, lane % 4};
  int slot = 0;
  std::uint32_t parity = 0;
  for (int index = begin; index < total; index += stride) {
    const PlannedItem& item = args.plan.items()[index / args.attention.kv_heads];
    const std::int32_t kv_head = index % args.attention.kv_heads;
    const std::int32_t end = item.end_tile;
    const bool context = item.context != 0;
    typename Tile::Queries queries[Tile::kSets];
    typename Tile::State chunk[Tile::kSets];
    typename Tile::State group[Tile::kSets];
    typename Tile::State row[Tile::kSets];
#pragma unroll
    for (int set = 0; set < Tile::kSets; ++set) {
      load_queries(args, item, kv_head, set, tile, queries[set]);
      chunk[set].clear();
      group[set].clear();
      row[set].clear();
    }
    for (int t = item.first_tile; t < end; ++t) {
      tile.page = pages + slot * page;
      barrier_wait(barriers + slot, parity);
#pragma unroll
      for (int set = 0; set < Tile::kSets; ++set) {
        tile.attend(queries[set], t * exact::kPageTokens, chunk[set]);
      }
      feeder.feed();
      if (++slot == args.buffers) {
        slot = 0;
        parity ^= 1U;
      }
      const bool last = t + 1 == end;
      if (!last && (!context || (t + 1) % exact::kChunkTiles != 0)) continue;
#pragma unroll
      for (int set = 0; set < Tile::kSets; ++set) {
        group[set].append(chunk[set]);
        chunk[set].clear();
        if (!last && (t + 1) % exact::kGroupTiles != 0) continue;
        row[set].append(group[set]);
        group[set].clear();
      }
    }
#pragma unroll
    for (int set = 0; set < Tile::kSets; ++set) store_state(args, item, kv_head, set, tile, row[set]);
  }
}

}  // namespace

/// Launches the kernel for 4, 8 or 16 columns.
void launch_columns4(const ColumnsArgs& args, std::int32_t blocks, Stream stream);
void launch_columns8(const ColumnsArgs& args, std::int32_t blocks, Stream stream);
void launch_columns16(const ColumnsArgs& args, std::int32_t blocks, Stream stream);

namespace {

constexpr int kSharedBytes = 227 * 1024;

template <int kPad, int kColumns, bool kExact>
void launch_columns(ColumnsArgs args, std::int32_t blocks, Stream stream) {
  using Tile = Tile<kPad, kColumns, kExact>;
  const int page = static_cast<int>(page_bytes(args.attention.head_dim));
  const int reserve = Tile::kDigitBytes + 64;
  int warps = columns_threads(kPad) / 32;
  while (warps > 1 && warps * (2 * page + reserve) > kSharedBytes) --warps;
  args.buffers = min((kSharedBytes / warps - reserve) / page, 4);
  const int bytes = warps * (args.buffers * (page + 8) + Tile::kDigitBytes);
  const auto kernel = columns_kernel<kPad, kColumns, kExact>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "attention memory");
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(32 * warps), static_cast<std::size_t>(bytes),
           stream>>>(args);
  check_launch("attention columns");
}

template <int kColumns>
void launch_columns_of(const ColumnsArgs& args, std::int32_t blocks, Stream stream) {
  const std::int32_t dim = args.attention.head_dim;
  if (dim == 64) return launch_columns<64, kColumns, true>(args, blocks, stream);
  if (dim == 128) return launch_columns<128, kColumns, true>(args, blocks, stream);
  if (dim == 256) return launch_columns<256, kColumns, true>(args, blocks, stream);
  if (dim < 64) return launch_columns<64, kColumns, false>(args, blocks, stream);
  if (dim < 128) return launch_columns<128, kColumns, false>(args, blocks, stream);
  return launch_columns<256, kColumns, false>(args, blocks, stream);
}

}  // namespace
}  // namespace fieldprint::backend::cuda
