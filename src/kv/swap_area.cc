#include "kv/swap_area.h"

#include <fmt/format.h>

#include <map>

#include "base/bounds.h"
#include "base/check.h"

namespace fieldprint::kv {

Result<std::unique_ptr<SwapArea>> SwapArea::create(const KvGeometry& geometry, const SwapOptions& options) {
  const std::int64_t slots = options.bytes / geometry.block_bytes();
  if (slots < 1 || options.bytes > bounds::kMaxKvSwapBytes) {
    return caller_error(
        fmt::format("a swap area of {} bytes is not possible: a block takes {} bytes, and the most is {} GiB",
                    options.bytes, geometry.block_bytes(), bounds::kMaxKvSwapBytes >> 30));
  }
  auto storage = options.file.empty() ? swap_memory(geometry.block_bytes(), slots)
                                      : swap_file(geometry.block_bytes(), options.file);
  if (!storage) return storage.error();
  return std::make_unique<SwapArea>(std::move(*storage), slots);
}

SwapArea::SwapArea(std::unique_ptr<SwapStorage> storage, std::int64_t slots)
    : storage_(std::move(storage)), slots_(slots) {
  CHECK(slots >= 1, "{} slots", slots);
}

SwapStats SwapArea::stats() const {
  return {static_cast<std::int64_t>(entries_.size()), swapped_out_, swapped_in_, damaged_, failures_};
}

void SwapArea::put(const Content& content, const BlockPool& pool, BlockId from) {
  CHECK(!contains(content.key), "a block is swapped and in the pool");
  const std::optional<std::int64_t> slot = free_slot();
  if (!slot) return drop(std::span(&content.key, 1));
  pool.download(from, storage_->room(*slot));
  if (const Status stored = storage_->store(*slot); !stored) {
    slots_ = fresh_;
    fail(stored.error());
    return drop(std::span(&content.key, 1));
  }
  entries_.emplace(content.key, Entry{content, *slot, ages_.insert(ages_.end(), content.key)});
  ++swapped_out_;
}

std::optional<SwapArea::Content> SwapArea::take(const BlockKey& key, BlockPool& pool, BlockId to) {
  const auto found = entries_.find(key);
  CHECK(found != entries_.end(), "the block is not swapped");
  const Content content = found->second.content;
  const std::int64_t slot = remove(found);
  const Result<const std::uint8_t*> bytes = storage_->load(slot);
  if (!bytes) {
    fail(bytes.error());
    drop(std::span(&key, 1));
    return std::nullopt;
  }
  pool.upload(to, *bytes);
  free_.push_back(slot);
  return content;
}

void SwapArea::keep_longest(std::span<const BlockKey> chain) {
  for (auto key = chain.rbegin(); key != chain.rend(); ++key) {
    const auto found = entries_.find(*key);
    if (found != entries_.end()) ages_.splice(ages_.end(), ages_, found->second.age);
  }
}

void SwapArea::supersede(const BlockKey& key) {
  const auto found = entries_.find(key);
  if (found != entries_.end()) drop(std::span(&key, 1));
}

void SwapArea::drop(std::span<const BlockKey> keys) {
  if (entries_.empty()) return;
  std::multimap<BlockKey, BlockKey> children;
  for (const auto& [key, entry] : entries_) children.emplace(entry.content.parent, key);
  std::vector<BlockKey> doomed(keys.begin(), keys.end());
  for (std::size_t i = 0; i < doomed.size(); ++i) {
    const auto found = entries_.find(doomed[i]);
    if (found != entries_.end()) free_.push_back(remove(found));
    const auto [begin, end] = children.equal_range(doomed[i]);
    for (auto child = begin; child != end; ++child) doomed.push_back(child->second);
  }
}

void SwapArea::clear() {
  while (!entries_.empty()) free_.push_back(remove(entries_.begin()));
}

/// Of the slots that were used before, one that is free; else a new one, else that of the oldest block.
std::optional<std::int64_t> SwapArea::free_slot() {
  if (!free_.empty()) {
    const std::int64_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  if (fresh_ < slots_) return fresh_++;
  if (ages_.empty()) return std::nullopt;
  return remove(entries_.find(ages_.front()));
}

std::int64_t SwapArea::remove(Entries::iterator entry) {
  const std::int64_t slot = entry->second.slot;
  ages_.erase(entry->second.age);
  entries_.erase(entry);
  return slot;
}

void SwapArea::fail(const Error& error) {
  if (failures_++ == 0) trouble_ = error.message;
}

}  // namespace fieldprint::kv
