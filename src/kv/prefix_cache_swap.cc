#include "base/check.h"
#include "kv/prefix_cache.h"

/// The way back from the swap area.
namespace fieldprint::kv {

std::optional<std::string> PrefixCache::take_swap_trouble() {
  return swap_ ? swap_->take_trouble() : std::nullopt;
}

std::vector<BlockId> PrefixCache::bring_back(std::span<const BlockKey> keys) {
  if (!swap_) return {};
  std::vector<BlockId> back = share_held(keys);
  std::vector<BlockId> blocks;
  const std::vector<SwapArea::Content> contents = take_swapped(keys.subspan(back.size()), blocks);
  if (blocks.empty()) return back;
  const std::vector<Digest> digests = block_digests(pool_.geometry(), hasher_, blocks);
  ++moment_;
  std::size_t good = 0;
  while (good < blocks.size() && digests[good] == contents[good].digest) ++good;
  std::vector<BlockKey> lost;
  for (std::size_t i = good; i < blocks.size(); ++i) {
    if (digests[i] != contents[i].digest) swap_->count_damaged();
    pool_.release(blocks[i]);
    lost.push_back(contents[i].key);
  }
  // What is still swapped may descend from any of them.
  if (!lost.empty()) swap_->drop(lost);
  blocks.resize(good);
  for (std::size_t i = 0; i < good; ++i) {
    Entry& e = entry(blocks[i]);
    e.sealed = true;
    e.key = contents[i].key;
    e.parent = contents[i].parent;
    e.digest = digests[i];
    e.good_at = moment_;
    index(blocks[i]);
  }
  swap_->count_in(static_cast<std::int64_t>(good));
  back.insert(back.end(), blocks.begin(), blocks.end());
  return back;
}

/// Only what is held: what is merely cached is an available block, which another match may count on.
std::vector<BlockId> PrefixCache::share_held(std::span<const BlockKey> keys) {
  std::vector<BlockId> blocks;
  for (const BlockKey& key : keys) {
    const auto found = index_.find(key);
    if (found == index_.end() || entry(found->second).evictable) break;
    pool_.retain(found->second);
    blocks.push_back(found->second);
  }
  return blocks;
}

/// Copies them into new blocks, which are not sealed yet.
std::vector<SwapArea::Content> PrefixCache::take_swapped(std::span<const BlockKey> keys,
                                                         std::vector<BlockId>& blocks) {
  std::vector<SwapArea::Content> contents;
  // What has to make room for them is swapped too, and must not push them out.
  swap_->keep_longest(keys);
  for (const BlockKey& key : keys) {
    if (!swap_->contains(key)) break;
    const std::optional<BlockId> block = acquire();
    if (!block) break;
    // To make room for it may have cost the block itself.
    std::optional<SwapArea::Content> content;
    if (swap_->contains(key)) content = swap_->take(key, pool_, *block);
    if (!content) {
      pool_.release(*block);
      break;
    }
    contents.push_back(*content);
    blocks.push_back(*block);
  }
  return contents;
}

}  // namespace fieldprint::kv
