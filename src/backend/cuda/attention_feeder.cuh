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
///
/// Team items come first, each for the block of its number: of their chunks, one after the other through all
/// of a block's items, each warp has every so-manyth, as if it were an item.
class Feeder {
 public:
  __device__ Feeder(const ColumnsArgs& args, std::uint8_t* tile, std::uint64_t* barriers, int warp, int warps)
      : args_(args),
        tile_(tile),
        barriers_(barriers),
        half_page_(static_cast<std::uint32_t>(page_size(args.attention.head_dim)) / 2),
        total_(args.plan.header->items * args.attention.kv_heads),
        teams_(args.plan.header->team_items * args.attention.kv_heads),
        warps_(warps),
        lane_(static_cast<int>(threadIdx.x) % 32),
        task_(static_cast<int>(blockIdx.x)),
        turn_(warp) {
    // Blocks without a team item have others at once.
    const int blocks = max(static_cast<int>(gridDim.x) - teams_, 0);
    left_ = teams_ + blocks * warps;
    if (task_ < teams_) {
      if (!find_chunk()) next_.place.index = total_;
    } else {
      next_.place.index = teams_ + warp * blocks + task_ - teams_;
      ahead_ = kTaken;
    }
    start_next();
  }

  __device__ bool has() const { return place_.index < total_; }
  __device__ const Place& place() const { return place_; }
  __device__ bool is_team(const Place& place) const { return place.index < teams_; }
  /// Whether the tile's tokens are all of earlier steps.
  __device__ bool settled() const { return place_.tile < settled_; }

  /// Near the end of an item: takes the next one's number.
  __device__ void take() {
    if (ahead_ != kNone || place_.tile + 2 < place_.end) return;
    if (is_team(place_) && find_chunk()) return;
    if (lane_ == 0) next_.place.index = left_ + atomicAdd(args_.taken, 1);
    ahead_ = kTaken;
  }
  /// Finds that item, and then its first blocks.
  __device__ void find_item() {
    if (ahead_ != kTaken) return;
    next_.place.index = __shfl_sync(kAllLanes, next_.place.index, 0);
    if (next_.place.index < total_) {
      find(args_.plan.items()[next_.place.index / args_.attention.kv_heads]);
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
  __device__ void find(const PlannedItem& item) {
    next_.place.tile = item.first_tile;
    next_.place.end = item.end_tile;
    next_.block = item.block;
    next_.settled = item.settled_tiles;
  }
  /// The warp's next chunk of the block's team items, if there is one.
  __device__ bool find_chunk() {
    for (; task_ < teams_; task_ += static_cast<int>(gridDim.x)) {
      const PlannedItem& item = args_.plan.items()[task_ / args_.attention.kv_heads];
      const int first = item.first_tile / exact::kChunkTiles;
      const int chunks = (item.end_tile + exact::kChunkTiles - 1) / exact::kChunkTiles - first;
      if (turn_ < chunks) {
        find(item);
        next_.place.index = task_;
        next_.place.tile = max(next_.place.tile, (first + turn_) * exact::kChunkTiles);
        next_.place.end = min(next_.place.end, (first + turn_ + 1) * exact::kChunkTiles);
        turn_ += warps_;
        ahead_ = kFound;
        return true;
      }
      turn_ -= chunks;
    }
    return false;
  }

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
  int teams_;  ///< of team items and heads
  int left_;   ///< the first that no warp begins with
  int warps_;  ///< of the block
  int lane_;
  int task_;  ///< the block's team item, by its number
  int turn_;  ///< of its chunks the warp's next one
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
