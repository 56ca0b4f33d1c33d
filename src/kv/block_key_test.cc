#include "kv/block_key.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "kv/block_digest.h"

namespace fieldprint::kv {
namespace {

std::vector<std::int32_t> iota(std::int32_t count, std::int32_t first = 0) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

const BlockKey kRoot = root_key(sha256(std::string_view("model")), "canon-1");

std::string le64(std::uint64_t value) {
  std::string bytes;
  for (int shift = 0; shift < 64; shift += 8) {
    bytes.push_back(static_cast<char>(value >> shift));
  }
  return bytes;
}

std::string raw(const Digest& digest) { return {digest.begin(), digest.end()}; }

TEST(BlockKey, HashesTheDocumentedBytes) {
  const Digest model = sha256(std::string_view("model"));
  EXPECT_EQ(kRoot.digest, sha256("fieldprint kv root v0\n" + raw(model) + le64(7) + "canon-1"));
  const std::vector<std::int32_t> tokens = {1, -2};
  const std::string token_bytes = le64(2) + std::string("\x01\0\0\0\xFE\xFF\xFF\xFF", 8);
  EXPECT_EQ(block_key(kRoot, core::Segment::kContext, tokens).digest,
            sha256("fieldprint kv key v0\n" + raw(kRoot.digest) + "\x02" + token_bytes));
  EXPECT_EQ(first_context_key(kRoot, {0.5F, 2.0F}, tokens).digest,
            sha256("fieldprint kv context v0\n" + raw(kRoot.digest) + std::string("\0\0\0\x3F\0\0\0\x40", 8) +
                   token_bytes));
}

TEST(BlockKey, ChainCoversFullBlocksOnly) {
  const core::BlockLayout layout{70};
  EXPECT_EQ(chain_keys(kRoot, layout, {}, {}).size(), 0U);
  EXPECT_EQ(chain_keys(kRoot, layout, {}, iota(1)).size(), 1U);
  EXPECT_EQ(chain_keys(kRoot, layout, {}, iota(64)).size(), 1U);
  EXPECT_EQ(chain_keys(kRoot, layout, {}, iota(65)).size(), 2U);
  EXPECT_EQ(chain_keys(kRoot, layout, {}, iota(71)).size(), 3U);
  EXPECT_EQ(chain_keys(kRoot, layout, {}, iota(71 + 63)).size(), 3U);
  EXPECT_EQ(chain_keys(kRoot, layout, {}, iota(71 + 64)).size(), 4U);
}

TEST(BlockKey, EveryInputChangesTheKeysFromItsBlockOn) {
  const std::vector<std::int32_t> tokens = iota(1 + 64 + 128);
  const core::BlockLayout layout{64};
  const AnchorOdds odds{0.25F, 4.0F};
  const std::vector<BlockKey> base = chain_keys(kRoot, layout, odds, tokens);
  ASSERT_EQ(base.size(), 4U);
  const auto first_difference = [&base](const std::vector<BlockKey>& other) {
    std::size_t i = 0;
    while (i < base.size() && i < other.size() && base[i] == other[i]) {
      ++i;
    }
    for (std::size_t j = i; j < std::min(base.size(), other.size()); ++j) {
      EXPECT_NE(base[j], other[j]);
    }
    return i;
  };
  EXPECT_EQ(
      first_difference(chain_keys(root_key(sha256(std::string_view("m2")), "canon-1"), layout, odds, tokens)),
      0U);
  EXPECT_EQ(first_difference(
                chain_keys(root_key(sha256(std::string_view("model")), "canon-2"), layout, odds, tokens)),
            0U);
  EXPECT_EQ(first_difference(chain_keys(kRoot, layout, {0.5F, 4.0F}, tokens)), 2U);
  EXPECT_EQ(first_difference(chain_keys(kRoot, layout, {0.25F, 5.0F}, tokens)), 2U);
  EXPECT_EQ(first_difference(chain_keys(kRoot, core::BlockLayout{0}, odds, tokens)), 1U);
  EXPECT_EQ(first_difference(chain_keys(kRoot, core::BlockLayout{63}, odds, tokens)), 1U);
  for (const std::size_t position : {0U, 1U, 64U, 65U, 128U, 129U, 192U}) {
    std::vector<std::int32_t> changed = tokens;
    changed[position] += 1;
    EXPECT_EQ(first_difference(chain_keys(kRoot, layout, odds, changed)),
              static_cast<std::size_t>(layout.place(static_cast<std::int64_t>(position)).block));
  }
}

TEST(BlockKey, OddsMeanNothingWithoutAnchors) {
  const std::vector<std::int32_t> tokens = iota(200);
  EXPECT_EQ(chain_keys(kRoot, {}, {}, tokens), chain_keys(kRoot, {}, {0.5F, 3.0F}, tokens));
}

TEST(BlockDigest, IsTheHashOfThePageHashesInOrder) {
  const KvGeometry geometry{.layers = 2, .kv_heads = 2, .head_dim = 4};
  BlockPool pool = std::move(BlockPool::create(geometry, 2)).value();
  const std::vector<BlockId> blocks = {pool.acquire(), pool.acquire()};
  for (std::int64_t i = 0; i < geometry.block_bytes(); ++i) {
    pool.data(blocks[1])[i] = static_cast<std::uint8_t>(i * 7 + 1);
  }
  const std::vector<Digest> digests = block_digests(geometry, host_page_hasher(pool), blocks);
  ASSERT_EQ(digests.size(), 2U);
  std::string bytes = "fieldprint kv block v0\n";
  for (std::int64_t layer = 0; layer < 2; ++layer) {
    for (std::int64_t head = 0; head < 2; ++head) {
      const backend::KvLayer where = pool.layer(layer);
      const std::uint8_t* page = where.pool + blocks[1] * where.block_stride + where.layer_offset +
                                 head * backend::page_bytes(geometry.head_dim);
      bytes += raw(sha256(std::span(page, static_cast<std::size_t>(geometry.page_bytes()))));
    }
  }
  EXPECT_EQ(digests[1], sha256(bytes));
  EXPECT_NE(digests[0], digests[1]);
}

}  // namespace
}  // namespace fieldprint::kv
