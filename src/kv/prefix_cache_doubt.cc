#include <algorithm>
#include <map>
#include <tuple>

#include "base/check.h"
#include "kv/prefix_cache.h"

/// What is to be done where two blocks under one key do not have one digest.
namespace fieldprint::kv {

void PrefixCache::doubt(BlockId indexed, const SealRequest& request) {
  const auto suspect = [this](BlockId block) {
    if (std::ranges::find(suspects_, block) == suspects_.end()) suspects_.push_back(block);
  };
  // Another table may have come to the same doubt in this call.
  if (std::ranges::find(suspects_, indexed) == suspects_.end()) {
    const std::vector<BlockId> damaged = find_damaged(chain_of(request.key));
    for (const BlockId block : damaged) suspect(block);
    if (damaged.empty()) {
      // Equal keys mean equal bytes; otherwise the arithmetic is not canonical and no receipt may be issued.
      CHECK(doubted_.insert(request.key).second, "blocks {} and {} differ under key {}, for the second time",
            indexed, request.block, to_hex(request.key.digest));
      suspect(indexed);
    }
  }
  suspect(request.block);
}

/// The sealed blocks under a key and under those before it, whatever table holds them.
std::vector<BlockId> PrefixCache::chain_of(BlockKey key) const {
  std::multimap<BlockKey, BlockId> by_key;
  for (BlockId block = 0; block < pool_.blocks(); ++block) {
    if (sealed(block)) by_key.emplace(entry(block).key, block);
  }
  std::vector<BlockId> chain;
  for (auto [begin, end] = by_key.equal_range(key); begin != end;
       std::tie(begin, end) = by_key.equal_range(entry(begin->second).parent)) {
    for (auto it = begin; it != end; ++it) chain.push_back(it->second);
  }
  return chain;
}

}  // namespace fieldprint::kv
