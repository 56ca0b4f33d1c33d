#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "commit/receipt.h"

/// The records of a trajectory in the ledger, each naming its parent's leaf hash: one that opens it, when the
/// prompt is computed; one for each block of context that generation fills; and the answer's body. All but
/// the last follow from the body, so that a receipt proves the whole chain and need not repeat it. No step
/// reads the last output token, so it fills no block and stands in no segment.
namespace fieldprint::commit {

/// What a trajectory begins with: "record": "open".
struct OpenRecord {
  Digest model_digest{};
  std::string canon_version;
  std::vector<Digest> anchors;  ///< ids, in the order in which they were bound
  core::AnchorBounds anchor_bounds;
  std::uint64_t anchors_at = 0;  ///< size of the ledger by which the anchors were in force
  SamplingSettings sampling;
  std::int32_t max_tokens = 0;
  std::vector<std::string> stop;
  std::vector<Input> inputs;
  std::uint64_t prompt_tokens = 0;
  Digest prompt_digest{};                    ///< digest_of sink, anchor and context tokens in a row
  std::vector<core::BlockRecord> kv_blocks;  ///< the sink's, the anchors', and the context's full ones
  bool operator==(const OpenRecord&) const = default;
};

/// The tokens with which one block of context became full: "record": "segment".
struct SegmentRecord {
  Digest parent{};
  std::int32_t first = 0;   ///< of the output tokens
  std::int32_t tokens = 0;  ///< ≥ 1
  Digest tokens_digest{};   ///< digest_of them
  core::BlockRecord kv_block{};
  bool operator==(const SegmentRecord&) const = default;
};

/// What validation found: "record": "verdict". It is about all commits named.
struct VerdictRecord {
  std::vector<Digest> commits;  ///< leaf hashes
  bool good = false;
  std::string reason;               ///< of a bad one; empty otherwise
  std::uint64_t head = 0;           ///< revocations were looked for in so many leaves of the ledger
  std::uint32_t pages_checked = 0;  ///< blocks whose bytes were hashed again for these commits
  std::string reexecuted_on;        ///< backend that computed a segment again; empty: none was
  bool operator==(const VerdictRecord&) const = default;
};

/// The leaf of a record, in the deterministic encoding of bodies. A value out of its range is the caller's
/// error and names its field. Where an open record is longer than a leaf may be, the leaf is the map
/// {"record": "open", "body_bytes": its length, "body_digest": its SHA-256}.
Result<Bytes> encode(const OpenRecord& record);
Result<Bytes> encode(const SegmentRecord& record);
Result<Bytes> encode(const VerdictRecord& record);
/// Strict inverses: exactly the known fields, in the deterministic encoding. Errors name the field, or say
/// that the leaf holds an open record's digest alone.
Result<OpenRecord> decode_open(std::span<const std::uint8_t> leaf);
Result<SegmentRecord> decode_segment(std::span<const std::uint8_t> leaf);
Result<VerdictRecord> decode_verdict(std::span<const std::uint8_t> leaf);

/// What a leaf says that it is: "open", "segment", "verdict", "anchor", "policy"; "answer" for a body or its
/// digest; empty for what is none of ours. Looks no further than it must: the leaf may still be malformed.
std::string_view record_kind(std::span<const std::uint8_t> leaf);

/// Which output tokens stand in the segment of a block: those whose KV fills it, [first, first + tokens).
struct SegmentTokens {
  std::int32_t first = 0;
  std::int32_t tokens = 0;
  bool operator==(const SegmentTokens&) const = default;
};
/// Of block `block` of the table, one of the context that ends after the `prompt_tokens`, the sink's and the
/// anchors' among them.
SegmentTokens segment_tokens(const core::BlockLayout& layout, std::int64_t prompt_tokens, std::int64_t block);

/// `tokens` are the segment's own.
SegmentRecord segment_record(const Digest& parent, std::int32_t first, const TokenIds& tokens,
                             const core::BlockRecord& kv_block);

/// The record with which a body's trajectory begins.
OpenRecord open_record(const Body& body);

/// Leaves of the open record and the segments of an answer, in order, from what its body states; not from its
/// parent. Bodies whose blocks do not fit their tokens are the caller's error.
Result<std::vector<Bytes>> chain_of(const Body& body);

/// What a body must name as its parent: the leaf hash of the last of its chain_of.
Result<Digest> parent_of(const Body& body);

}  // namespace fieldprint::commit
