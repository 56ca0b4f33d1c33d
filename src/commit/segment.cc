#include "commit/segment.h"

#include <algorithm>
#include <array>

#include "base/bounds.h"
#include "base/check.h"
#include "commit/decoding.h"
#include "commit/validate.h"
#include "ledger/merkle.h"

namespace fieldprint::commit {
namespace {

template <class T>
Result<Bytes> encode_record(const T& record, std::string_view what) {
  if (const auto invalid = find_invalid(record)) return field_error(*invalid, what);
  return detail::encoded(record);
}

core::BlockLayout layout_of(const Body& body) {
  return {static_cast<std::int64_t>(body.anchor_tokens.size())};
}

std::int64_t prompt_tokens_of(const Body& body) {
  return static_cast<std::int64_t>(body.sink_tokens.size() + body.anchor_tokens.size() +
                                   body.context_tokens.size());
}

/// Blocks are in the order of their table, and hold the prompt and the output but for its last token.
Status check_blocks_fit(const Body& body) {
  if (body.sink_tokens.size() != 1) return caller_error("a history begins with one sink token");
  if (body.output_tokens.empty()) return caller_error("the answer has no tokens");
  const core::BlockLayout layout = layout_of(body);
  const std::int64_t tokens =
      prompt_tokens_of(body) + static_cast<std::int64_t>(body.output_tokens.size()) - 1;
  const std::int64_t blocks = layout.blocks_for(tokens);
  if (std::cmp_not_equal(body.kv_blocks.size(), blocks)) {
    return caller_error(
        fmt::format("{} KV blocks are stated, but {} tokens fill {}", body.kv_blocks.size(), tokens, blocks));
  }
  for (std::int64_t i = 0; i < blocks; ++i) {
    const core::BlockRecord& stated = body.kv_blocks[static_cast<std::size_t>(i)];
    if (stated != core::block_record(layout, i, tokens, stated.digest)) {
      return caller_error(fmt::format("KV block {} does not hold the tokens that stand there", i));
    }
  }
  return {};
}

}  // namespace

Result<Bytes> encode(const OpenRecord& record) {
  auto encoding = encode_record(record, "open record");
  if (!encoding || std::cmp_less_equal(encoding->size(), bounds::kMaxLeafBytes)) return encoding;
  return detail::digest_leaf(detail::kOpenName.text, *encoding);
}

Result<Bytes> encode(const SegmentRecord& record) { return encode_record(record, "segment record"); }

Result<Bytes> encode(const VerdictRecord& record) { return encode_record(record, "verdict record"); }

Result<OpenRecord> decode_open(std::span<const std::uint8_t> leaf) {
  CborReader reader(leaf);
  if (record_kind(leaf) == detail::kOpenName.text && detail::find_key(reader, "body_digest")) {
    return caller_error("the open record was longer than a leaf may be, so the leaf holds its digest alone");
  }
  return detail::decode_strictly<OpenRecord>(leaf, "open record", [](const auto& r) { return encode(r); });
}

Result<SegmentRecord> decode_segment(std::span<const std::uint8_t> leaf) {
  return detail::decode_strictly<SegmentRecord>(leaf, "segment record",
                                                [](const auto& r) { return encode(r); });
}

Result<VerdictRecord> decode_verdict(std::span<const std::uint8_t> leaf) {
  return detail::decode_strictly<VerdictRecord>(leaf, "verdict record",
                                                [](const auto& r) { return encode(r); });
}

std::string_view record_kind(std::span<const std::uint8_t> leaf) {
  constexpr std::array<std::string_view, 5> kKinds = {"open", "segment", "verdict", "anchor", "policy"};
  const std::string_view stated = cbor::text_under("record", leaf);
  if (!stated.empty()) {
    const auto known = std::find(kKinds.begin(), kKinds.end(), stated);
    return known == kKinds.end() ? std::string_view() : *known;
  }
  for (const std::string_view key : {"body_digest", "output_digest"}) {
    CborReader reader(leaf);
    if (detail::find_key(reader, key)) return "answer";
  }
  return {};
}

SegmentTokens segment_tokens(const core::BlockLayout& layout, std::int64_t prompt_tokens,
                             std::int64_t block) {
  const std::int64_t end = layout.block_end(block) - prompt_tokens;
  CHECK(layout.segment_of_block(block) == core::Segment::kContext && end > 0,
        "block {} is filled by the prompt alone", block);
  const std::int64_t first = std::max<std::int64_t>(layout.block_begin(block) - prompt_tokens, 0);
  return {static_cast<std::int32_t>(first), static_cast<std::int32_t>(end - first)};
}

SegmentRecord segment_record(const Digest& parent, std::int32_t first, const TokenIds& tokens,
                             const core::BlockRecord& kv_block) {
  return {parent, first, static_cast<std::int32_t>(tokens.size()), digest_of(tokens), kv_block};
}

OpenRecord open_record(const Body& body) {
  OpenRecord record;
  record.model_digest = body.model_digest;
  record.canon_version = body.canon_version;
  for (const AnchorRecord& anchor : body.anchors) record.anchors.push_back(anchor.id);
  record.anchor_bounds = body.anchor_bounds;
  record.anchors_at = body.anchors_at;
  record.sampling = body.sampling;
  record.max_tokens = body.max_tokens;
  record.stop = body.stop;
  record.inputs = body.inputs;
  TokenIds prompt = body.sink_tokens;
  prompt.insert(prompt.end(), body.anchor_tokens.begin(), body.anchor_tokens.end());
  prompt.insert(prompt.end(), body.context_tokens.begin(), body.context_tokens.end());
  record.prompt_tokens = prompt.size();
  record.prompt_digest = digest_of(prompt);
  const std::int64_t filled = layout_of(body).full_blocks(prompt_tokens_of(body));
  const auto blocks = static_cast<std::ptrdiff_t>(
      std::min<std::int64_t>(filled, static_cast<std::int64_t>(body.kv_blocks.size())));
  record.kv_blocks.assign(body.kv_blocks.begin(), body.kv_blocks.begin() + blocks);
  return record;
}

Result<std::vector<Bytes>> chain_of(const Body& body) {
  if (Status status = check_blocks_fit(body); !status) return status.error();
  const OpenRecord open = open_record(body);
  auto leaf = encode(open);
  if (!leaf) return leaf.error();
  std::vector<Bytes> chain = {std::move(*leaf)};
  const core::BlockLayout layout = layout_of(body);
  for (std::size_t i = open.kv_blocks.size(); i < body.kv_blocks.size(); ++i) {
    if (body.kv_blocks[i].tokens < core::kBlockTokens) break;
    const auto [first, count] = segment_tokens(layout, prompt_tokens_of(body), static_cast<std::int64_t>(i));
    const auto begin = body.output_tokens.begin() + first;
    auto segment = encode(segment_record(ledger::leaf_hash(chain.back()), first,
                                         TokenIds(begin, begin + count), body.kv_blocks[i]));
    if (!segment) return segment.error();
    chain.push_back(std::move(*segment));
  }
  return chain;
}

Result<Digest> parent_of(const Body& body) {
  auto chain = chain_of(body);
  if (!chain) return chain.error();
  return ledger::leaf_hash(chain->back());
}

}  // namespace fieldprint::commit
