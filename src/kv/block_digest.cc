#include "kv/block_digest.h"

#include <utility>

#include "base/check.h"

namespace fieldprint::kv {

PageHasher host_page_hasher(const BlockPool& pool) {
  return [&pool](std::span<const BlockId> blocks) {
    const auto page_bytes = static_cast<std::size_t>(pool.geometry().page_bytes());
    const auto pages = static_cast<std::size_t>(pool.geometry().pages_per_block());
    const auto start = std::chrono::steady_clock::now();
    std::vector<Digest> digests;
    for (const BlockId block : blocks) {
      const std::uint8_t* data = pool.data(block);
      for (std::size_t page = 0; page < pages; ++page) {
        digests.push_back(sha256(std::span(data + page * page_bytes, page_bytes)));
      }
    }
    return std::make_unique<backend::ReadyDigests>(std::move(digests),
                                                   std::chrono::steady_clock::now() - start);
  };
}

Digest block_digest(std::span<const Digest> pages) {
  Sha256 hash;
  hash.update("fieldprint kv block v0\n");
  for (const Digest& page : pages) {
    hash.update(page);
  }
  return hash.finish();
}

std::vector<Digest> block_digests(const KvGeometry& geometry, backend::PendingDigests& pages,
                                  std::size_t count) {
  const auto each = static_cast<std::size_t>(geometry.pages_per_block());
  const std::span<const Digest> all = pages.wait();
  CHECK(all.size() == count * each, "{} digests for {} blocks", all.size(), count);
  std::vector<Digest> digests;
  digests.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    digests.push_back(block_digest(all.subspan(i * each, each)));
  }
  return digests;
}

std::vector<Digest> block_digests(const KvGeometry& geometry, const PageHasher& hasher,
                                  std::span<const BlockId> blocks) {
  if (blocks.empty()) {
    return {};
  }
  return block_digests(geometry, *hasher(blocks), blocks.size());
}

}  // namespace fieldprint::kv
