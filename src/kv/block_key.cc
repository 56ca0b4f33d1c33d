#include "kv/block_key.h"

#include <array>
#include <bit>

#include "base/check.h"

namespace fieldprint::kv {
namespace {

void put_u32(std::vector<std::uint8_t>& bytes, std::uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) {
    bytes.push_back(static_cast<std::uint8_t>(value >> shift));
  }
}

BlockKey finish_with_tokens(Sha256& hash, std::span<const std::int32_t> tokens) {
  std::vector<std::uint8_t> bytes;
  bytes.reserve(tokens.size() * 4);
  for (const std::int32_t token : tokens) {
    put_u32(bytes, static_cast<std::uint32_t>(token));
  }
  hash.update_u64(tokens.size()).update(bytes);
  return {hash.finish()};
}

}  // namespace

BlockKey root_key(const Digest& model, std::string_view canon_version) {
  Sha256 hash;
  hash.update("fieldprint kv root v0\n").update(model).update_u64(canon_version.size());
  return {hash.update(canon_version).finish()};
}

BlockKey block_key(const BlockKey& parent, core::Segment segment, std::span<const std::int32_t> tokens) {
  Sha256 hash;
  const std::array<std::uint8_t, 1> tag = {static_cast<std::uint8_t>(segment)};
  hash.update("fieldprint kv key v0\n").update(parent.digest).update(tag);
  return finish_with_tokens(hash, tokens);
}

BlockKey first_context_key(const BlockKey& parent, AnchorOdds odds, std::span<const std::int32_t> tokens) {
  Sha256 hash;
  std::vector<std::uint8_t> bits;
  put_u32(bits, std::bit_cast<std::uint32_t>(odds.floor));
  put_u32(bits, std::bit_cast<std::uint32_t>(odds.ceiling));
  hash.update("fieldprint kv context v0\n").update(parent.digest).update(bits);
  return finish_with_tokens(hash, tokens);
}

BlockKey table_block_key(const BlockKey& parent, core::BlockLayout layout, AnchorOdds odds,
                         std::int64_t index, std::span<const std::int32_t> tokens) {
  CHECK(static_cast<std::int64_t>(tokens.size()) == layout.block_end(index) - layout.block_begin(index),
        "block {} with {} tokens", index, tokens.size());
  if (layout.anchor_tokens > 0 && index == layout.preface_blocks()) {
    return first_context_key(parent, odds, tokens);
  }
  return block_key(parent, layout.segment_of_block(index), tokens);
}

std::vector<BlockKey> chain_keys(const BlockKey& root, core::BlockLayout layout, AnchorOdds odds,
                                 std::span<const std::int32_t> tokens) {
  const std::int64_t blocks = layout.full_blocks(static_cast<std::int64_t>(tokens.size()));
  std::vector<BlockKey> keys;
  keys.reserve(static_cast<std::size_t>(blocks));
  BlockKey parent = root;
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::int64_t begin = layout.block_begin(i);
    const auto own = tokens.subspan(static_cast<std::size_t>(begin),
                                    static_cast<std::size_t>(layout.block_end(i) - begin));
    parent = table_block_key(parent, layout, odds, i, own);
    keys.push_back(parent);
  }
  return keys;
}

}  // namespace fieldprint::kv
