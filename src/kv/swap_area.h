#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/result.h"
#include "kv/block_key.h"
#include "kv/block_pool.h"
#include "kv/swap_storage.h"

namespace fieldprint::kv {

struct SwapOptions {
  std::int64_t bytes = 0;  ///< most that swapped blocks may take; 0: no swap area
  std::string file;        ///< where they lie; empty: in host memory
};

/// What a swap area holds and did.
struct SwapStats {
  std::int64_t blocks = 0;  ///< in it now
  std::uint64_t swapped_out = 0;
  std::uint64_t swapped_in = 0;  ///< came back with the digest with which they left
  std::uint64_t damaged = 0;     ///< came back with another one, and were dropped
  std::uint64_t failures = 0;    ///< reads and writes that failed
};

/// Blocks that had to make room, by content address, with the digest that they had when they were sealed.
/// Bounded; the block that came first is dropped first, which is never one whose children are still here,
/// because a chain leaves the pool from its end. Whoever takes a block out compares its digest before use.
///
/// What it costs. A block leaves by one copy and comes back by one copy and one hashing, both on the caller's
/// thread: bytes over the bandwidth of the way (memory, bus or disk), and bytes over the speed of SHA-256.
/// Computing it again costs a forward pass over 64 tokens. For SmolLM2 on two CPU cores that is 0.74 MB, so
/// 0.1 ms at 8 GB/s and 0.6 ms at 1.3 GB/s, against 37 ms at 1,747 tokens/s; for a model of 8B on an H100
/// 4.2 MB, so 0.4 ms at 10 GB/s, against 2.1 ms at 30,000 tokens/s. Host memory is worth it on both. A file
/// is on the CPU (0.2 GB/s would do); on the GPU, where out and back are 8.4 MB, from some 4 GB/s on. Every
/// eviction pays for its copy, whether or not anybody wants the block again.
///
/// A write or read that fails costs what it was about, and its slot is not used again; a write also ends the
/// growth of the area. The blocks concerned are computed again. Not thread-safe.
class SwapArea {
 public:
  /// For blocks of `geometry`. Caller error if `options.bytes` is less than one block or more than
  /// bounds::kMaxKvSwapBytes, and as swap_file says.
  static Result<std::unique_ptr<SwapArea>> create(const KvGeometry& geometry, const SwapOptions& options);

  SwapArea(std::unique_ptr<SwapStorage> storage, std::int64_t slots);

  bool contains(const BlockKey& key) const { return entries_.contains(key); }
  SwapStats stats() const;
  /// What went wrong with the storage for the first time; given out once.
  std::optional<std::string> take_trouble() { return std::exchange(trouble_, std::nullopt); }

  struct Content {
    BlockKey key;
    BlockKey parent;
    Digest digest{};  ///< when it was sealed
  };
  /// Copies a block in, dropping the oldest if there is no room. Where that fails, what descends from it is
  /// dropped: it would not be found.
  void put(const Content& content, const BlockPool& pool, BlockId from);
  /// Takes a block out and copies its bytes to `to`. Empty if they cannot be read; what descends from it is
  /// dropped then. It must be here.
  std::optional<Content> take(const BlockKey& key, BlockPool& pool, BlockId to);
  /// Counts blocks that were taken out as come back, or as damaged.
  void count_in(std::int64_t blocks) { swapped_in_ += static_cast<std::uint64_t>(blocks); }
  void count_damaged() { ++damaged_; }

  /// Makes a chain (those of its keys that are here) the last to be dropped.
  void keep_longest(std::span<const BlockKey> chain);
  /// Drops a block that was computed again, with all that descends from it: nobody has looked whether the
  /// bytes that these were computed from were good.
  void supersede(const BlockKey& key);
  /// Drops these blocks and everything that descends from them.
  void drop(std::span<const BlockKey> keys);
  void clear();

 private:
  friend struct SwapProbe;  // tests alter stored bytes through it

  struct Entry {
    Content content;
    std::int64_t slot;
    std::list<BlockKey>::iterator age;
  };
  using Entries = std::unordered_map<BlockKey, Entry, BlockKeyHash>;

  std::optional<std::int64_t> free_slot();
  /// Its slot is the caller's.
  std::int64_t remove(Entries::iterator entry);
  void fail(const Error& error);

  std::unique_ptr<SwapStorage> storage_;
  std::int64_t slots_;              ///< that may be used
  std::int64_t fresh_ = 0;          ///< the first slot that never was
  std::vector<std::int64_t> free_;  ///< a stack of others
  Entries entries_;
  std::list<BlockKey> ages_;  ///< oldest first; children before their parents
  std::optional<std::string> trouble_;
  std::uint64_t swapped_out_ = 0;
  std::uint64_t swapped_in_ = 0;
  std::uint64_t damaged_ = 0;
  std::uint64_t failures_ = 0;
};

}  // namespace fieldprint::kv
