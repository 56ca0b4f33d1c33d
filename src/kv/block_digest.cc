#include "kv/block_digest.h"

#include "base/check.h"

namespace fieldprint::kv {

PageHasher host_page_hasher(const BlockPool& pool) {
  return [&pool](std::span<const BlockId> blocks, std::span<Digest> out) {
    const auto page_bytes = static_cast<std::size_t>(pool.geometry().page_bytes());
    const auto pages = static_cast<std::size_t>(pool.geometry().pages_per_block());
    CHECK(out.size() == blocks.size() * pages, "{} digests for {} blocks", out.size(), blocks.size());
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      const std::uint8_t* data = pool.data(blocks[i]);
      for (std::size_t page = 0; page < pages; ++page) {
        out[i * pages + page] = sha256(std::span(data + page * page_bytes, page_bytes));
      }
    }
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

std::vector<Digest> block_digests(const KvGeometry& geometry, const PageHasher& hasher,
                                  std::span<const BlockId> blocks) {
  if (blocks.empty()) {
    return {};
  }
  const auto pages = static_cast<std::size_t>(geometry.pages_per_block());
  std::vector<Digest> page_digests(blocks.size() * pages);
  hasher(blocks, page_digests);
  std::vector<Digest> digests;
  digests.reserve(blocks.size());
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    digests.push_back(block_digest(std::span(page_digests).subspan(i * pages, pages)));
  }
  return digests;
}

}  // namespace fieldprint::kv
