#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/ops.h"
#include "base/result.h"
#include "core/block_layout.h"
#include "core/ids.h"

namespace fieldprint::kv {

using core::BlockId;

/// Shape of the KV cache of one model. A block holds the pages of every layer and KV head for the same 64
/// tokens: layer-major, then head; a page is laid out as backend::KvLayer says.
struct KvGeometry {
  std::int64_t layers;    ///< 1…bounds::kMaxLayers
  std::int64_t kv_heads;  ///< 1…bounds::kMaxHeads
  std::int64_t head_dim;  ///< 1…bounds::kMaxHeadDim

  constexpr std::int64_t page_bytes() const { return backend::page_bytes(head_dim); }
  constexpr std::int64_t pages_per_block() const { return layers * kv_heads; }
  constexpr std::int64_t layer_offset(std::int64_t layer) const { return layer * kv_heads * page_bytes(); }
  /// A multiple of 64, as every page is, so it is the blocks' stride too.
  constexpr std::int64_t block_bytes() const { return layers * kv_heads * page_bytes(); }

  friend constexpr bool operator==(const KvGeometry&, const KvGeometry&) = default;
};

/// The memory under a pool, with any contents. It costs resident memory only where it was written. A device
/// has its own; the offsets are bytes from base().
class BlockMemory {
 public:
  virtual ~BlockMemory() = default;
  virtual std::uint8_t* base() const = 0;  ///< aligned to 64; may be a device address
  /// Zeroes `rows` rows of `row_bytes`, `stride` bytes apart.
  virtual void zero(std::int64_t offset, std::int64_t row_bytes, std::int64_t stride, std::int64_t rows) = 0;
  virtual void copy(std::int64_t from, std::int64_t to, std::int64_t bytes) = 0;
  /// To and from host memory, which is free to be used when they return.
  virtual void download(void* host, std::int64_t from, std::int64_t bytes) const = 0;
  virtual void upload(std::int64_t to, const void* host, std::int64_t bytes) = 0;
};

/// Host memory mapped on demand. Environment error if the address space is refused.
Result<std::unique_ptr<BlockMemory>> map_host_memory(std::int64_t bytes);

/// Blocks of KV memory with reference counts. It knows nothing of sequences or content: PrefixCache decides
/// who shares what, and block tables come to their blocks through it.
///
/// A block is free (no references) or held. acquire() hands it out zeroed: unwritten slots of a page are
/// zero, because a page's bytes are its identity. Most recently released blocks are reused first, so that
/// resident memory grows only with use. Not thread-safe: the engine's thread owns it.
class BlockPool {
 public:
  /// `memory` holds blocks · geometry.block_bytes(). `placement_seed` 0 hands blocks out in order; any other
  /// value shuffles them: where a block lies must never change a result, and tests vary it to show that.
  BlockPool(KvGeometry geometry, std::int64_t blocks, std::unique_ptr<BlockMemory> memory,
            std::uint64_t placement_seed = 0);

  /// A pool in host memory. Caller error if `blocks` is not in 1…bounds::kMaxKvBlocks.
  static Result<BlockPool> create(KvGeometry geometry, std::int64_t blocks, std::uint64_t placement_seed = 0);

  const KvGeometry& geometry() const { return geometry_; }
  std::int64_t blocks() const { return static_cast<std::int64_t>(references_.size()); }
  std::int64_t free_blocks() const { return static_cast<std::int64_t>(free_.size()); }
  std::int32_t references(BlockId block) const;

  /// A zeroed block with one reference. The pool must have a free one.
  BlockId acquire();
  void retain(BlockId block);
  /// Drops a reference; true if it was the last and the block is free now.
  bool release(BlockId block);
  /// A block with the same bytes and one reference, in exchange for the caller's reference to `block`:
  /// `block` itself if the caller is its only holder, else a copy (the pool must have a free block).
  BlockId copy_on_write(BlockId block);
  /// Copies the block's geometry().block_bytes() bytes to host memory, or from there into a block with one
  /// reference.
  void download(BlockId block, std::uint8_t* host) const;
  void upload(BlockId block, const std::uint8_t* host);
  /// Zeroes the slots from `first_slot` on, in every page of the block.
  void clear_slots(BlockId block, std::int32_t first_slot);

  std::uint8_t* base() const { return memory_->base(); }
  /// First byte of a block, where the backend computes.
  std::uint8_t* data(BlockId block) const;
  /// What attention and rope_append need to find the pages of a layer.
  backend::KvLayer layer(std::int64_t layer) const;

 private:
  std::int64_t offset(BlockId block) const;

  KvGeometry geometry_;
  std::unique_ptr<BlockMemory> memory_;
  std::vector<std::int32_t> references_;
  std::vector<BlockId> free_;  ///< a stack
};

}  // namespace fieldprint::kv
