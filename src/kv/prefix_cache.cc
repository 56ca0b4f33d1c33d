#include "kv/prefix_cache.h"

#include <algorithm>
#include <map>

#include "base/check.h"

namespace fieldprint::kv {

PrefixCache::PrefixCache(BlockPool& pool, PageHasher hasher, bool enabled, std::unique_ptr<SwapArea> swap)
    : pool_(pool),
      hasher_(std::move(hasher)),
      enabled_(enabled),
      swap_(std::move(swap)),
      entries_(static_cast<std::size_t>(pool.blocks())) {
  CHECK(pool.free_blocks() == pool.blocks(), "the pool is in use");
}

PrefixCache::~PrefixCache() {
  CHECK(leases_.empty(), "{} anchor blocks are still leased", leases_.size());
  clear();
  CHECK(pool_.free_blocks() == pool_.blocks(), "{} of {} blocks are still held",
        pool_.blocks() - pool_.free_blocks(), pool_.blocks());
}

PrefixCache::Entry& PrefixCache::entry(BlockId block) {
  CHECK(block >= 0 && block < pool_.blocks(), "block {} of {}", block, pool_.blocks());
  return entries_[static_cast<std::size_t>(block)];
}

const PrefixCache::Entry& PrefixCache::entry(BlockId block) const {
  CHECK(block >= 0 && block < pool_.blocks(), "block {} of {}", block, pool_.blocks());
  return entries_[static_cast<std::size_t>(block)];
}

std::int32_t PrefixCache::holders(BlockId block) const {
  return pool_.references(block) - (entry(block).indexed ? 1 : 0);
}

bool PrefixCache::leased(const BlockKey& key) const { return leases_.contains(key); }

std::int64_t PrefixCache::available_blocks() const {
  return pool_.free_blocks() + static_cast<std::int64_t>(lru_.size());
}

BlockState PrefixCache::state(BlockId block) const {
  const Entry& e = entry(block);
  if (pool_.references(block) == 0) {
    return BlockState::kFree;
  }
  if (e.indexed && leased(e.key)) {
    return BlockState::kPinned;
  }
  if (e.evictable) {
    return BlockState::kCached;
  }
  return holders(block) == 1 && !e.sealed ? BlockState::kExclusive : BlockState::kShared;
}

CacheStats PrefixCache::stats() const {
  return {static_cast<std::int64_t>(lru_.size()), pinned_blocks_, evictions_, duplicates_,
          swap_ ? swap_->stats() : SwapStats()};
}

std::optional<BlockId> PrefixCache::acquire() {
  if (pool_.free_blocks() == 0) {
    if (lru_.empty()) {
      return std::nullopt;
    }
    evict_one();
  }
  return pool_.acquire();
}

void PrefixCache::retain(BlockId block) {
  CHECK(holders(block) > 0, "block {} is held by no table: it is found by match", block);
  pool_.retain(block);
}

void PrefixCache::release(BlockId block) {
  CHECK(holders(block) > 0, "block {} is held by no table", block);
  if (pool_.references(block) == 1) settle(block);
  if (pool_.release(block)) {
    entry(block) = Entry{};
    return;
  }
  refresh(block);
}

std::optional<BlockId> PrefixCache::make_writable(BlockId block) {
  CHECK(holders(block) > 0, "block {} is held by no table", block);
  if (!copied_on_write(block)) {
    settle(block);
    entry(block) = Entry{};
    return block;
  }
  if (available_blocks() == 0) {
    return std::nullopt;
  }
  if (pool_.free_blocks() == 0) {
    evict_one();
  }
  const BlockId copy = pool_.copy_on_write(block);
  refresh(block);
  return copy;
}

std::vector<BlockId> PrefixCache::match(std::span<const BlockKey> keys) {
  std::vector<BlockId> blocks;
  for (const BlockKey& key : keys) {
    const auto found = index_.find(key);
    if (found == index_.end()) {
      break;
    }
    pool_.retain(found->second);
    refresh(found->second);
    blocks.push_back(found->second);
  }
  return blocks;
}

PrefixCache::Probe PrefixCache::probe(std::span<const BlockKey> keys) const {
  Probe probe;
  for (const BlockKey& key : keys) {
    const auto found = index_.find(key);
    if (found == index_.end()) {
      break;
    }
    ++probe.blocks;
    probe.cached += entry(found->second).evictable ? 1 : 0;
    probe.pinned += leased(key) ? 1 : 0;
  }
  const auto rest = keys.subspan(static_cast<std::size_t>(probe.blocks));
  while (swap_ && probe.swapped < std::ssize(rest) &&
         swap_->contains(rest[static_cast<std::size_t>(probe.swapped)])) {
    ++probe.swapped;
  }
  return probe;
}

std::vector<BlockId> PrefixCache::seal(std::span<const SealRequest> requests) {
  std::vector<BlockId> fresh;
  for (const SealRequest& request : requests) {
    CHECK(holders(request.block) > 0, "block {} is held by no table", request.block);
    if (!entry(request.block).sealed) {
      fresh.push_back(request.block);
    }
  }
  if (!fresh.empty()) begin_hashing(std::move(fresh));
  std::vector<BlockId> blocks;
  blocks.reserve(requests.size());
  for (const SealRequest& request : requests) {
    blocks.push_back(seal_one(request));
  }
  return blocks;
}

void PrefixCache::begin_hashing(std::vector<BlockId> blocks) {
  // What may throw comes first: a block that is marked must have a batch.
  hashing_.reserve(hashing_.size() + 1);
  std::unique_ptr<backend::PendingDigests> pages = hasher_(blocks);
  ++moment_;
  for (const BlockId block : blocks) {
    entry(block).hashing = true;
    entry(block).good_at = moment_;
  }
  hashing_.push_back({std::move(blocks), std::move(pages), moment_});
}

void PrefixCache::settle() {
  for (const Hashing& batch : hashing_) {
    const std::vector<Digest> digests = block_digests(pool_.geometry(), *batch.pages, batch.blocks.size());
    for (std::size_t i = 0; i < digests.size(); ++i) {
      Entry& e = entry(batch.blocks[i]);
      e.digest = digests[i];
      e.hashing = false;
    }
  }
  hashing_.clear();
}

void PrefixCache::settle(BlockId block) {
  if (!entry(block).hashing) return;
  settle();
  CHECK(!entry(block).hashing, "block {} is marked as being hashed, but is in no batch", block);
}

BlockId PrefixCache::seal_one(const SealRequest& request) {
  Entry& e = entry(request.block);
  if (e.sealed) {
    CHECK(e.key == request.key, "block {} is sealed under another key", request.block);
    return request.block;
  }
  const auto found = index_.find(request.key);
  const bool twice = found != index_.end();
  if (twice) {
    settle(found->second);
    settle(request.block);
  }
  if (twice && entry(found->second).digest == e.digest) {
    const BlockId indexed = found->second;
    pool_.retain(indexed);
    refresh(indexed);
    release(request.block);
    ++duplicates_;
    return indexed;
  }
  if (twice) doubt(found->second, request);
  e.sealed = true;
  e.key = request.key;
  e.parent = request.parent;
  const bool reachable = request.segment == core::Segment::kSink || index_.contains(request.parent);
  if (!twice && reachable && (enabled_ || request.segment != core::Segment::kContext)) {
    if (swap_) swap_->supersede(request.key);
    index(request.block);
  }
  return request.block;
}

void PrefixCache::index(BlockId block) {
  Entry& e = entry(block);
  pool_.retain(block);
  e.indexed = true;
  index_.emplace(e.key, block);
  pinned_blocks_ += leased(e.key) ? 1 : 0;
}

bool PrefixCache::sealed(BlockId block) const { return entry(block).sealed; }

const Digest& PrefixCache::digest(BlockId block) {
  CHECK(entry(block).sealed, "block {} is not sealed", block);
  settle(block);
  return entry(block).digest;
}

std::vector<Digest> PrefixCache::digests(std::span<const BlockId> blocks) {
  settle();
  std::vector<BlockId> open;
  std::copy_if(blocks.begin(), blocks.end(), std::back_inserter(open),
               [this](BlockId block) { return !sealed(block); });
  const std::vector<Digest> computed = block_digests(pool_.geometry(), hasher_, open);
  std::vector<Digest> digests;
  digests.reserve(blocks.size());
  std::size_t next = 0;
  for (const BlockId block : blocks) {
    digests.push_back(sealed(block) ? entry(block).digest : computed[next++]);
  }
  return digests;
}

std::uint64_t PrefixCache::begin_check(std::span<const BlockId> blocks) {
  for (const BlockId block : blocks) CHECK(sealed(block), "block {} is not sealed", block);
  checks_.push_back({{blocks.begin(), blocks.end()}, hasher_(blocks), ++moment_});
  for (const BlockId block : blocks) entry(block).checked_at = moment_;
  return moment_;
}

std::uint64_t PrefixCache::good_or_checked_at(BlockId block) const {
  return std::max(good_at(block), entry(block).checked_at);
}

std::vector<PrefixCache::Check> PrefixCache::finish_checks(bool wait) {
  std::vector<Check> came;
  for (; !checks_.empty() && (wait || checks_.front().pages->ready()); checks_.pop_front()) {
    const Hashing& batch = checks_.front();
    came.push_back({batch.moment, batch.pages->took(), compare(batch)});
  }
  return came;
}

std::vector<BlockId> PrefixCache::find_damaged(std::span<const BlockId> blocks) {
  if (blocks.empty()) return {};
  for (const BlockId block : blocks) CHECK(sealed(block), "block {} is not sealed", block);
  return compare({{blocks.begin(), blocks.end()}, hasher_(blocks), ++moment_});
}

/// The blocks of a batch that do not have their digests; the others were good when it began.
std::vector<BlockId> PrefixCache::compare(const Hashing& batch) {
  const std::vector<Digest> digests = block_digests(pool_.geometry(), *batch.pages, batch.blocks.size());
  std::vector<BlockId> damaged;
  for (std::size_t i = 0; i < digests.size(); ++i) {
    const BlockId block = batch.blocks[i];
    // What was sealed or found good since then is no longer what the batch began with.
    if (!sealed(block) || entry(block).good_at > batch.moment) continue;
    if (digests[i] == digest(block)) {
      entry(block).good_at = batch.moment;
    } else {
      damaged.push_back(block);
    }
  }
  return damaged;
}

std::uint64_t PrefixCache::good_at(BlockId block) const {
  CHECK(sealed(block), "block {} is not sealed", block);
  return entry(block).good_at;
}

std::vector<BlockId> PrefixCache::discard(BlockId block) {
  CHECK(entry(block).sealed, "block {} is not sealed", block);
  std::multimap<BlockKey, BlockId> children;
  for (BlockId other = 0; other < pool_.blocks(); ++other) {
    if (entry(other).sealed) {
      children.emplace(entry(other).parent, other);
    }
  }
  std::vector<BlockId> doomed = {block};
  std::vector<bool> seen(entries_.size(), false);
  seen[static_cast<std::size_t>(block)] = true;
  for (std::size_t i = 0; i < doomed.size(); ++i) {
    const auto [begin, end] = children.equal_range(entry(doomed[i]).key);
    for (auto child = begin; child != end; ++child) {
      if (!seen[static_cast<std::size_t>(child->second)]) {
        seen[static_cast<std::size_t>(child->second)] = true;
        doomed.push_back(child->second);
      }
    }
  }
  if (swap_) {
    std::vector<BlockKey> keys;
    for (const BlockId lost : doomed) keys.push_back(entry(lost).key);
    swap_->drop(keys);
  }
  std::vector<BlockId> held;
  for (const BlockId lost : doomed) {
    if (holders(lost) > 0) {
      held.push_back(lost);
    }
    if (entry(lost).indexed) {
      remove_from_index(lost);
    }
  }
  return held;
}

void PrefixCache::clear() {
  while (!lru_.empty()) {
    remove_from_index(lru_.front());
  }
  if (swap_) swap_->clear();
}

/// Brings an indexed block's place in the eviction order up to date with its holders and leases.
void PrefixCache::refresh(BlockId block) {
  const Entry& e = entry(block);
  if (!e.indexed) {
    return;
  }
  if (holders(block) > 0 || leased(e.key)) {
    make_unevictable(block);
  } else if (!enabled_) {
    remove_from_index(block);
  } else {
    make_evictable(block);
  }
}

void PrefixCache::make_evictable(BlockId block) {
  Entry& e = entry(block);
  if (!e.evictable) {
    e.lru = lru_.insert(lru_.end(), block);
    e.evictable = true;
  }
}

void PrefixCache::make_unevictable(BlockId block) {
  Entry& e = entry(block);
  if (e.evictable) {
    lru_.erase(e.lru);
    e.evictable = false;
  }
}

void PrefixCache::remove_from_index(BlockId block) {
  make_unevictable(block);
  settle(block);
  Entry& e = entry(block);
  pinned_blocks_ -= leased(e.key) ? 1 : 0;
  index_.erase(e.key);
  e.indexed = false;
  if (pool_.release(block)) {
    e = Entry{};
  }
}

void PrefixCache::evict_one() {
  const BlockId victim = lru_.front();
  CHECK(state(victim) == BlockState::kCached && holders(victim) == 0, "block {} must not be evicted", victim);
  if (swap_) {
    settle(victim);
    const Entry& e = entry(victim);
    swap_->put({e.key, e.parent, e.digest}, pool_, victim);
  }
  remove_from_index(victim);
  ++evictions_;
}

}  // namespace fieldprint::kv
