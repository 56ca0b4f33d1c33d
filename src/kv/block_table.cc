#include "kv/block_table.h"

#include <algorithm>
#include <utility>

#include "base/bounds.h"
#include "base/check.h"

namespace fieldprint::kv {

BlockTable::BlockTable(PrefixCache& cache, const BlockKey& root, core::BlockLayout layout, AnchorOdds odds)
    : cache_(&cache), root_(root), layout_(layout), odds_(odds) {
  CHECK(layout.anchor_tokens >= 0 && layout.anchor_tokens < bounds::kMaxContext, "{} anchor tokens",
        layout.anchor_tokens);
}

BlockTable::BlockTable(BlockTable&& other) noexcept
    : cache_(other.cache_),
      root_(other.root_),
      layout_(other.layout_),
      odds_(other.odds_),
      tokens_(std::exchange(other.tokens_, {})),
      blocks_(std::exchange(other.blocks_, {})),
      keys_(std::exchange(other.keys_, {})) {}

BlockTable& BlockTable::operator=(BlockTable&& other) noexcept {
  if (this != &other) {
    release();
    cache_ = other.cache_;
    root_ = other.root_;
    layout_ = other.layout_;
    odds_ = other.odds_;
    tokens_ = std::exchange(other.tokens_, {});
    blocks_ = std::exchange(other.blocks_, {});
    keys_ = std::exchange(other.keys_, {});
  }
  return *this;
}

BlockTable::Slot BlockTable::slot(std::int64_t position) const {
  CHECK(position >= 0 && position < size(), "position {} of {}", position, size());
  const core::TokenPlace place = layout_.place(position);
  return {blocks_[static_cast<std::size_t>(place.block)], place.slot};
}

std::int64_t BlockTable::match_prefix(std::span<const std::int32_t> tokens) {
  CHECK(blocks_.empty(), "the table holds {} tokens", size());
  keys_ = chain_keys(root_, layout_, odds_, tokens);
  blocks_ = cache_->match(keys_);
  keys_.resize(blocks_.size());
  const auto matched = static_cast<std::int64_t>(blocks_.size());
  const std::int64_t count = matched == 0 ? 0 : layout_.block_end(matched - 1);
  tokens_.assign(tokens.begin(), tokens.begin() + count);
  return count;
}

std::int64_t BlockTable::bring_back(std::span<const std::int32_t> tokens) {
  if (!cache_->swaps()) return 0;
  const std::vector<BlockKey> keys = chain_keys(root_, layout_, odds_, tokens);
  const std::size_t held = keys_.size();
  CHECK(held == blocks_.size() && held <= keys.size() && std::equal(keys_.begin(), keys_.end(), keys.begin()),
        "the table holds something else");
  const std::vector<BlockId> back = cache_->bring_back(std::span(keys).subspan(held));
  if (back.empty()) return 0;
  blocks_.insert(blocks_.end(), back.begin(), back.end());
  keys_.assign(keys.begin(), keys.begin() + std::ssize(blocks_));
  const std::int64_t before = size();
  tokens_.assign(tokens.begin(), tokens.begin() + layout_.block_end(std::ssize(blocks_) - 1));
  return size() - before;
}

bool BlockTable::tail_shared() const {
  return layout_.full_blocks(size()) < layout_.blocks_for(size()) &&
         cache_->state(blocks_.back()) != BlockState::kExclusive;
}

std::int64_t BlockTable::blocks_needed(std::int64_t count) const {
  if (count <= 0) {
    return 0;
  }
  return layout_.blocks_for(size() + count) - layout_.blocks_for(size()) + (tail_shared() ? 1 : 0);
}

bool BlockTable::append(std::span<const std::int32_t> tokens) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  CHECK(size() + count <= bounds::kMaxContext, "{} tokens", size() + count);
  if (blocks_needed(count) > cache_->available_blocks()) {
    return false;
  }
  if (count > 0 && tail_shared()) {
    blocks_.back() = cache_->make_writable(blocks_.back()).value();
  }
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  const std::int64_t wanted = layout_.blocks_for(size());
  while (static_cast<std::int64_t>(blocks_.size()) < wanted) {
    blocks_.push_back(cache_->acquire().value());
  }
  return true;
}

std::span<const std::int32_t> BlockTable::block_tokens(std::int64_t index) const {
  const std::int64_t begin = layout_.block_begin(index);
  return std::span(tokens_).subspan(static_cast<std::size_t>(begin),
                                    static_cast<std::size_t>(layout_.block_end(index) - begin));
}

void BlockTable::collect_filled(std::vector<SealRequest>& requests) const {
  BlockKey parent = keys_.empty() ? root_ : keys_.back();
  for (std::int64_t i = sealed_blocks(); i < layout_.full_blocks(size()); ++i) {
    const BlockKey key = table_block_key(parent, layout_, odds_, i, block_tokens(i));
    requests.push_back({parent, key, blocks_[static_cast<std::size_t>(i)], layout_.segment_of_block(i)});
    parent = key;
  }
}

std::int64_t BlockTable::seal_filled() {
  BlockTable* const self = this;
  return seal_filled(std::span(&self, 1));
}

std::int64_t BlockTable::seal_filled(std::span<BlockTable* const> tables) {
  if (tables.empty()) {
    return 0;
  }
  std::vector<SealRequest> requests;
  for (const BlockTable* table : tables) {
    CHECK(table->cache_ == tables.front()->cache_, "tables of different caches");
    table->collect_filled(requests);
  }
  if (requests.empty()) {
    return 0;
  }
  const std::vector<BlockId> sealed = tables.front()->cache_->seal(requests);
  std::size_t next = 0;
  for (BlockTable* table : tables) {
    const std::int64_t full = table->layout_.full_blocks(table->size());
    for (std::int64_t i = table->sealed_blocks(); i < full; ++i, ++next) {
      table->blocks_[static_cast<std::size_t>(i)] = sealed[next];
      table->keys_.push_back(requests[next].key);
    }
  }
  return static_cast<std::int64_t>(requests.size());
}

bool BlockTable::truncate(std::int64_t count) {
  CHECK(count >= layout_.preface_tokens() && count <= size(), "{} of {} tokens, {} of them sink and anchors",
        count, size(), layout_.preface_tokens());
  if (count == size()) {
    return true;
  }
  const auto kept = static_cast<std::size_t>(layout_.blocks_for(count));
  const auto full = static_cast<std::size_t>(layout_.full_blocks(count));
  const bool cuts = full < kept;
  if (cuts && cache_->copied_on_write(blocks_[kept - 1]) && cache_->available_blocks() == 0) {
    return false;
  }
  while (blocks_.size() > kept) {
    cache_->release(blocks_.back());
    blocks_.pop_back();
  }
  if (cuts) {
    blocks_[kept - 1] = cache_->make_writable(blocks_[kept - 1]).value();
    cache_->pool().clear_slots(blocks_[kept - 1], layout_.place(count).slot);
  }
  tokens_.resize(static_cast<std::size_t>(count));
  if (keys_.size() > full) {
    keys_.resize(full);
  }
  return true;
}

BlockTable BlockTable::fork() const {
  BlockTable copy(*cache_, root_, layout_, odds_);
  for (const BlockId block : blocks_) {
    cache_->retain(block);
  }
  copy.tokens_ = tokens_;
  copy.blocks_ = blocks_;
  copy.keys_ = keys_;
  return copy;
}

void BlockTable::release() {
  while (!blocks_.empty()) {
    cache_->release(blocks_.back());
    blocks_.pop_back();
  }
  tokens_.clear();
  keys_.clear();
}

std::int64_t BlockTable::reclaimable_blocks() const {
  std::int64_t count = 0;
  for (const BlockId block : blocks_) {
    count += cache_->holders(block) == 1 && cache_->state(block) != BlockState::kPinned ? 1 : 0;
  }
  return count;
}

std::int64_t BlockTable::pinned_blocks() const {
  std::int64_t count = 0;
  for (const BlockId block : blocks_) {
    count += cache_->state(block) == BlockState::kPinned ? 1 : 0;
  }
  return count;
}

}  // namespace fieldprint::kv
