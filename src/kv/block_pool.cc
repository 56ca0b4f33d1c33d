#include "kv/block_pool.h"

#include <sys/mman.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "base/bounds.h"
#include "base/check.h"
#include "exact/arith.h"

namespace fieldprint::kv {
namespace {

class MappedMemory final : public BlockMemory {
 public:
  MappedMemory(std::uint8_t* base, std::size_t bytes) : base_(base), bytes_(bytes) {}
  ~MappedMemory() override { munmap(base_, bytes_); }
  MappedMemory(const MappedMemory&) = delete;
  MappedMemory& operator=(const MappedMemory&) = delete;

  std::uint8_t* base() const override { return base_; }

  void zero(std::int64_t offset, std::int64_t row_bytes, std::int64_t stride, std::int64_t rows) override {
    for (std::int64_t row = 0; row < rows; ++row) {
      std::memset(base_ + offset + row * stride, 0, static_cast<std::size_t>(row_bytes));
    }
  }

  void copy(std::int64_t from, std::int64_t to, std::int64_t bytes) override {
    std::memcpy(base_ + to, base_ + from, static_cast<std::size_t>(bytes));
  }

  void download(void* host, std::int64_t from, std::int64_t bytes) const override {
    std::memcpy(host, base_ + from, static_cast<std::size_t>(bytes));
  }

  void upload(std::int64_t to, const void* host, std::int64_t bytes) override {
    std::memcpy(base_ + to, host, static_cast<std::size_t>(bytes));
  }

 private:
  std::uint8_t* base_;
  std::size_t bytes_;
};

/// SplitMix64 (Steele, Lea, Flood 2014): enough to scatter blocks, the same everywhere.
std::uint64_t next_random(std::uint64_t& state) {
  state += 0x9E3779B97F4A7C15U;
  std::uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

/// The bytes of one channel of V, [begin, end), that hold slots from `first_slot` on.
std::vector<std::pair<std::int32_t, std::int32_t>> value_runs(std::int32_t first_slot) {
  std::array<bool, core::kBlockTokens> held{};
  for (std::int32_t slot = first_slot; slot < core::kBlockTokens; ++slot) {
    held[static_cast<std::size_t>(exact::value_slot(slot))] = true;
  }
  std::vector<std::pair<std::int32_t, std::int32_t>> runs;
  for (std::int32_t byte = 0; byte < core::kBlockTokens; ++byte) {
    if (!held[static_cast<std::size_t>(byte)]) continue;
    if (runs.empty() || runs.back().second != byte) runs.emplace_back(byte, byte);
    runs.back().second = byte + 1;
  }
  return runs;
}

void check_geometry(const KvGeometry& geometry) {
  CHECK(geometry.layers >= 1 && geometry.layers <= bounds::kMaxLayers, "layers {}", geometry.layers);
  CHECK(geometry.kv_heads >= 1 && geometry.kv_heads <= bounds::kMaxHeads, "KV heads {}", geometry.kv_heads);
  CHECK(geometry.head_dim >= 1 && geometry.head_dim <= bounds::kMaxHeadDim, "head size {}",
        geometry.head_dim);
}

}  // namespace

Result<std::unique_ptr<BlockMemory>> map_host_memory(std::int64_t bytes) {
  CHECK(bytes > 0, "{} bytes", bytes);
  // Without reservation: a pool is sized for the worst case, and pages cost memory once they are written.
  void* base = mmap(nullptr, static_cast<std::size_t>(bytes), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    const int error = errno;
    return environment_error(
        fmt::format("cannot map {} MiB for KV blocks: {}", bytes >> 20, std::strerror(error)));
  }
  return std::unique_ptr<BlockMemory>(
      std::make_unique<MappedMemory>(static_cast<std::uint8_t*>(base), static_cast<std::size_t>(bytes)));
}

BlockPool::BlockPool(KvGeometry geometry, std::int64_t blocks, std::unique_ptr<BlockMemory> memory,
                     std::uint64_t placement_seed)
    : geometry_(geometry), memory_(std::move(memory)) {
  check_geometry(geometry_);
  CHECK(blocks >= 1 && blocks <= bounds::kMaxKvBlocks, "{} blocks", blocks);
  references_.resize(static_cast<std::size_t>(blocks), 0);
  free_.reserve(static_cast<std::size_t>(blocks));
  for (std::int64_t block = blocks - 1; block >= 0; --block) {
    free_.push_back(static_cast<BlockId>(block));
  }
  if (placement_seed != 0) {
    for (std::size_t i = free_.size(); i > 1; --i) {
      std::swap(free_[i - 1], free_[next_random(placement_seed) % i]);
    }
  }
}

Result<BlockPool> BlockPool::create(KvGeometry geometry, std::int64_t blocks, std::uint64_t placement_seed) {
  check_geometry(geometry);
  if (blocks < 1 || blocks > bounds::kMaxKvBlocks) {
    return caller_error(
        fmt::format("a KV cache of {} blocks is not possible: choose 1 to {}", blocks, bounds::kMaxKvBlocks));
  }
  if (blocks > std::numeric_limits<std::int64_t>::max() / geometry.block_bytes()) {
    return caller_error(fmt::format("a KV cache of {} blocks of {} bytes is too large: choose fewer blocks",
                                    blocks, geometry.block_bytes()));
  }
  auto memory = map_host_memory(blocks * geometry.block_bytes());
  if (!memory) return environment_error(memory.error().message + "; use fewer of them");
  return BlockPool(geometry, blocks, std::move(*memory), placement_seed);
}

std::int32_t BlockPool::references(BlockId block) const {
  CHECK(block >= 0 && block < blocks(), "block {} of {}", block, blocks());
  return references_[static_cast<std::size_t>(block)];
}

BlockId BlockPool::acquire() {
  CHECK(!free_.empty(), "no free block");
  const BlockId block = free_.back();
  free_.pop_back();
  std::int32_t& references = references_[static_cast<std::size_t>(block)];
  CHECK(references == 0, "block {} is free and held", block);
  references = 1;
  memory_->zero(offset(block), geometry_.block_bytes(), geometry_.block_bytes(), 1);
  return block;
}

void BlockPool::retain(BlockId block) {
  CHECK(references(block) > 0, "block {} is free", block);
  ++references_[static_cast<std::size_t>(block)];
}

bool BlockPool::release(BlockId block) {
  CHECK(references(block) > 0, "block {} is free", block);
  if (--references_[static_cast<std::size_t>(block)] > 0) {
    return false;
  }
  free_.push_back(block);
  return true;
}

BlockId BlockPool::copy_on_write(BlockId block) {
  if (references(block) == 1) {
    return block;
  }
  CHECK(references(block) > 1, "block {} is free", block);
  const BlockId copy = acquire();
  memory_->copy(offset(block), offset(copy), geometry_.block_bytes());
  release(block);
  return copy;
}

void BlockPool::download(BlockId block, std::uint8_t* host) const {
  CHECK(references(block) > 0, "block {} is free", block);
  memory_->download(host, offset(block), geometry_.block_bytes());
}

void BlockPool::upload(BlockId block, const std::uint8_t* host) {
  CHECK(references(block) == 1, "block {} has {} holders", block, references(block));
  memory_->upload(offset(block), host, geometry_.block_bytes());
}

void BlockPool::clear_slots(BlockId block, std::int32_t first_slot) {
  CHECK(references(block) == 1, "block {} has {} holders", block, references(block));
  CHECK(first_slot >= 0 && first_slot <= core::kBlockTokens, "slot {}", first_slot);
  const std::int64_t dim = geometry_.head_dim;
  const std::int64_t cut = core::kBlockTokens - first_slot;
  const auto runs = value_runs(first_slot);
  for (std::int64_t page = 0; page < geometry_.pages_per_block(); ++page) {
    const std::int64_t keys = offset(block) + page * geometry_.page_bytes();
    const std::int64_t values = keys + core::kBlockTokens * dim;
    memory_->zero(keys + first_slot * dim, cut * dim, cut * dim, 1);
    for (const auto& [begin, end] : runs) {
      memory_->zero(values + begin, end - begin, core::kBlockTokens, dim);
    }
  }
}

std::uint8_t* BlockPool::data(BlockId block) const {
  CHECK(block >= 0 && block < blocks(), "block {} of {}", block, blocks());
  return memory_->base() + offset(block);
}

backend::KvLayer BlockPool::layer(std::int64_t layer) const {
  CHECK(layer >= 0 && layer < geometry_.layers, "layer {} of {}", layer, geometry_.layers);
  return {memory_->base(), geometry_.block_bytes(), geometry_.layer_offset(layer)};
}

std::int64_t BlockPool::offset(BlockId block) const { return block * geometry_.block_bytes(); }

}  // namespace fieldprint::kv
