#pragma once

#include <cstdint>

#include "backend/cuda/attention_columns.cuh"
#include "backend/cuda/bulk_copy.cuh"

namespace fieldprint::backend::cuda {

/// A tile of an item: item and KV head by number, and where the item ends.
struct Place {
  int index;
  int tile;
  int end;
};

/// Brings the tiles of a warp's items to shared memory, in order. There is room for one tile, K and V apart:
/// the next tile's keys arrive while this one's values are used. A warp begins with the item of its own
/// number and then takes the next that is left. Three loads that depend on each other lie between an item's
/// number and its pages; they are begun a tile ahead, each while the warp does something else.
class Feeder {
 public:
  __device__ Feeder(const ColumnsArgs& args, std::uint8_t* tile, std::uint64_t* barriers, int first,
                    int warps)
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
    const std::uint8_t* from =
        args_.attention.kv.pool + args_.attention.kv.layer_offset +
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
      bulk_copy_once(tile_ + (2 * p + half) * half_page_, pages_[p] + half * half_page_, half_page_,
                     barriers_ + half);
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

}  // namespace fieldprint::backend::cuda
