#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/sha256.h"
#include "kv/block_digest.h"
#include "kv/block_key.h"
#include "kv/block_pool.h"
#include "kv/swap_area.h"

namespace fieldprint::kv {

/// The lock/evict contract. A block is in one of these states; only the arrows are legal, everything else
/// is a CHECK.
///
///   free       nobody holds it; its bytes mean nothing
///   exclusive  one table holds it, not sealed: the only state in which it may be written
///   shared     sealed, or held by several tables: read-only
///   cached     sealed and indexed, held by no table: may be evicted
///   pinned     sealed and indexed, its key leased: read-only, never evicted, whoever holds it or not
///
///   free → exclusive      acquire
///   exclusive → shared    seal; retain (fork)
///   exclusive → free      release
///   shared → exclusive    release down to one table, if not sealed; make_writable, if sealed, not indexed
///                         and held by one table
///   shared → cached       release by the last table, if indexed and the cache is on
///   shared → free         release by the last table, otherwise
///   cached → shared       match
///   cached → free         eviction, least recently used first
///   shared, cached → pinned   a lease on its key; seal under a leased key
///   pinned → shared, cached, free   the last lease ends (free: no table, and the cache is off)
///   any indexed → not indexed       discard, with its descendants: free, or shared until released
///
/// With a swap area, content has a place outside the pool too; it is in the pool or swapped, never both.
///
///   cached → free, content swapped         eviction to make room, its digest final; not clear or discard
///   free, content swapped → shared, pinned bring_back, into a block of its own, if the bytes have the digest
///                                          with which they left (pinned: if the key is leased)
///   content swapped → dropped              it has another digest, cannot be read, is the oldest when room is
///                                          wanted, was computed again, descends from what is discarded or
///                                          dropped; clear
///
/// Pinned blocks never leave. Tables release their last block first, so that a chain is evicted from its end
/// and what stays cached or swapped is always reachable from the root. A swapped block may have been damaged
/// before it left, and others computed from it, so what descends from one with another digest is not used.
enum class BlockState : std::uint8_t { kFree, kExclusive, kShared, kCached, kPinned };

class PrefixCache;

/// Keeps the sink and anchor blocks of an anchor set in the pool while the set is in force: from their seal
/// (or from now, if they are sealed) until the lease ends. Leases on the same keys count. Must not outlive
/// its cache.
class AnchorLease {
 public:
  AnchorLease() = default;
  AnchorLease(AnchorLease&& other) noexcept;
  AnchorLease& operator=(AnchorLease&& other) noexcept;
  ~AnchorLease() { end(); }

  std::span<const BlockKey> keys() const { return keys_; }
  void end();

 private:
  friend class PrefixCache;
  AnchorLease(PrefixCache& cache, std::vector<BlockKey> keys) : cache_(&cache), keys_(std::move(keys)) {}

  PrefixCache* cache_ = nullptr;
  std::vector<BlockKey> keys_;
};

/// A full block on its way into the cache.
struct SealRequest {
  BlockKey parent;  ///< of the block before it in the table; the root for a sink
  BlockKey key;
  BlockId block;  ///< exclusive, or shared by a fork; already sealed blocks are left as they are
  core::Segment segment;
};

/// What the cache holds and did.
struct CacheStats {
  std::int64_t cached_blocks = 0;  ///< evictable now
  std::int64_t pinned_blocks = 0;
  std::uint64_t evictions = 0;
  std::uint64_t duplicates = 0;  ///< blocks computed twice and folded into one
  SwapStats swap;
};

/// Index of sealed blocks by content, and the tables' only way to the pool. With caching off, sink and
/// anchor blocks are still shared while a table or a lease holds them, and context blocks never are.
/// Not thread-safe: the engine's thread owns it. The pool must outlive the cache.
class PrefixCache {
 public:
  /// With caching off, nothing is ever swapped.
  PrefixCache(BlockPool& pool, PageHasher hasher, bool enabled = true,
              std::unique_ptr<SwapArea> swap = nullptr);
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;
  /// Every table and lease must be gone.
  ~PrefixCache();

  BlockPool& pool() { return pool_; }
  const BlockPool& pool() const { return pool_; }
  bool enabled() const { return enabled_; }
  bool swaps() const { return swap_ != nullptr; }

  /// Blocks that acquire() can still hand out: free or cached.
  std::int64_t available_blocks() const;
  BlockState state(BlockId block) const;
  /// Tables that hold the block.
  std::int32_t holders(BlockId block) const;
  CacheStats stats() const;

  /// What went wrong with the swap area for the first time; given out once.
  std::optional<std::string> take_swap_trouble();

  /// A zeroed exclusive block; evicts the least recently used cached block if none is free, into the swap
  /// area if there is one. Empty if there is nothing to evict.
  std::optional<BlockId> acquire();
  /// One more table holds the block.
  void retain(BlockId block);
  /// One table less holds the block.
  void release(BlockId block);
  /// Whether make_writable has to copy the block.
  bool copied_on_write(BlockId block) const { return holders(block) > 1 || entry(block).indexed; }
  /// An exclusive block with the bytes of `block`, in exchange for the caller's hold on it; it may be
  /// `block` itself. Empty, and nothing changed, if a copy is needed and no block is available.
  std::optional<BlockId> make_writable(BlockId block);

  /// The indexed blocks of the longest cached prefix of `keys`, each retained for the caller's table.
  std::vector<BlockId> match(std::span<const BlockKey> keys);
  /// The swapped blocks that begin `keys`, each in a new block that is retained for the caller's table and
  /// indexed. What precedes them is what match gave, and still held; those that another table has brought
  /// back since then, and holds, come first and are shared. They are hashed where they lie now, all at once,
  /// and end before the first whose digest is not the one with which it left, or for which no block is
  /// available.
  std::vector<BlockId> bring_back(std::span<const BlockKey> keys);
  /// How many blocks match, and how many of these are cached (available now, and no longer once matched) and
  /// pinned; and how many after those are swapped: each takes an available block when it is brought back.
  struct Probe {
    std::int64_t blocks = 0;
    std::int64_t cached = 0;
    std::int64_t pinned = 0;
    std::int64_t swapped = 0;
  };
  Probe probe(std::span<const BlockKey> keys) const;

  /// Begins to hash full, completely written blocks and makes them read-only; indexes them if caching is on
  /// or they are sink or anchors, and their parent is indexed. Returns for each request the block that the
  /// table must use from now on: if its key is indexed already, the indexed one, and the request's own is
  /// released. Parents come before their children. Equal keys mean equal digests, unless memory was altered:
  /// a request's block that has another digest than the indexed one stays its table's own, not indexed, and
  /// take_suspects() says what must be given up for that.
  std::vector<BlockId> seal(std::span<const SealRequest> requests);
  /// Of the blocks that were sealed under an indexed key with another digest: what is damaged of all that
  /// they and the indexed one were computed from, and the sealed blocks themselves; or, where every page has
  /// its digest, both: then one of them was altered before it was hashed. A CHECK stops the process where a
  /// key comes to that a second time, for then it is the arithmetic. Given out once, before anything is
  /// computed from these blocks; each must be discarded, and computed again by whoever holds it.
  std::vector<BlockId> take_suspects() { return std::exchange(suspects_, {}); }
  bool sealed(BlockId block) const;
  /// Waits for the digests of what was sealed. Whoever needs one waits by itself; called while a device is
  /// busy with something else, it costs nothing.
  void settle();
  /// Digest of the bytes at the time of sealing; the block must be sealed.
  const Digest& digest(BlockId block);
  /// Digests of blocks as they are, sealed (kept) or not (computed now).
  std::vector<Digest> digests(std::span<const BlockId> blocks);

  /// Moments count hashings, from 1.
  std::uint64_t moment() const { return moment_; }
  /// The moment at which a sealed block's bytes last had its digest; damage happened after that.
  std::uint64_t good_at(BlockId block) const;
  /// Begins to hash sealed blocks again, where a device does that beside what else it does; returns the
  /// moment. What is given up before the check is finished drops out of it.
  std::uint64_t begin_check(std::span<const BlockId> blocks);
  /// The moment that good_at() will be, unless the checks under way find damage.
  std::uint64_t good_or_checked_at(BlockId block) const;
  /// What came of a check.
  struct Check {
    std::uint64_t moment;           ///< at which it began
    std::chrono::nanoseconds took;  ///< of the device's time, or of the caller's
    std::vector<BlockId> damaged;   ///< whose bytes changed; the others are good
  };
  /// The checks that have come out since the last call, or with `wait` all, in the order in which they began.
  std::vector<Check> finish_checks(bool wait);
  /// Hashes sealed blocks again and waits: those whose bytes changed. The others are good.
  std::vector<BlockId> find_damaged(std::span<const BlockId> blocks);
  /// Takes a damaged sealed block and everything computed after it out of the index, so that nobody new
  /// finds them; what of it is swapped is dropped. Returns the blocks that are still held by tables: these
  /// sequences must recompute.
  std::vector<BlockId> discard(BlockId block);
  /// Drops every cached block, and every swapped one.
  void clear();

  /// Pins the blocks with these keys (a sink and its anchors, in table order).
  [[nodiscard]] AnchorLease lease(std::vector<BlockKey> keys);

 private:
  friend class AnchorLease;
  friend struct SwapProbe;  // tests alter swapped bytes through it

  /// What the cache knows of a block beyond the pool's count, which includes one for the index.
  struct Entry {
    bool sealed = false;
    bool indexed = false;
    BlockKey key;
    BlockKey parent;
    Digest digest{};
    bool hashing = false;  ///< the digest is on its way; until then the bytes must stay
    std::uint64_t good_at = 0;
    std::uint64_t checked_at = 0;  ///< when the last check began, or 0
    bool evictable = false;
    std::list<BlockId>::iterator lru;  ///< valid while evictable
  };

  /// Blocks whose digests are on their way.
  struct Hashing {
    std::vector<BlockId> blocks;
    std::unique_ptr<backend::PendingDigests> pages;
    std::uint64_t moment;
  };

  Entry& entry(BlockId block);
  const Entry& entry(BlockId block) const;
  bool leased(const BlockKey& key) const;
  void refresh(BlockId block);
  void make_evictable(BlockId block);
  void make_unevictable(BlockId block);
  void remove_from_index(BlockId block);
  void evict_one();
  std::vector<BlockId> share_held(std::span<const BlockKey> keys);
  std::vector<SwapArea::Content> take_swapped(std::span<const BlockKey> keys, std::vector<BlockId>& blocks);
  void index(BlockId block);
  void begin_hashing(std::vector<BlockId> blocks);
  std::vector<BlockId> compare(const Hashing& batch);
  /// For whoever gives the block's bytes up.
  void settle(BlockId block);
  BlockId seal_one(const SealRequest& request);
  void doubt(BlockId indexed, const SealRequest& request);
  std::vector<BlockId> chain_of(BlockKey key) const;
  void end_lease(std::span<const BlockKey> keys);

  BlockPool& pool_;
  PageHasher hasher_;
  bool enabled_;
  std::unique_ptr<SwapArea> swap_;  ///< null: what is evicted is lost
  std::vector<Entry> entries_;      ///< [blocks]
  std::vector<Hashing> hashing_;    ///< in the order in which it began
  std::deque<Hashing> checks_;      ///< likewise
  std::unordered_map<BlockKey, BlockId, BlockKeyHash> index_;
  std::unordered_map<BlockKey, std::int64_t, BlockKeyHash> leases_;
  std::vector<BlockId> suspects_;                       ///< not taken yet
  std::unordered_set<BlockKey, BlockKeyHash> doubted_;  ///< whose two digests no damaged page explained
  std::list<BlockId> lru_;                              ///< evictable blocks, least recently used first
  std::int64_t pinned_blocks_ = 0;
  std::uint64_t evictions_ = 0;
  std::uint64_t duplicates_ = 0;
  std::uint64_t moment_ = 0;
};

}  // namespace fieldprint::kv
