#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/sha256.h"
#include "core/block_layout.h"
#include "core/request.h"
#include "core/sampling.h"

/// A receipt: what a caller needs to check an answer offline, given the model file.
namespace fieldprint::commit {

using Bytes = std::vector<std::uint8_t>;
using TokenIds = std::vector<std::int32_t>;  ///< 0 ≤ id < bounds::kMaxVocab

inline constexpr std::uint32_t kReceiptVersion = 2;

struct AnchorRecord {
  Digest id{};      ///< SHA-256 of `canonical`
  Bytes canonical;  ///< the anchor's canonical bytes
  bool operator==(const AnchorRecord&) const = default;
};

/// What entered a context besides the text of its prompt.
struct Input {
  std::string kind;  ///< "tool_result" or "memory"
  Digest digest{};   ///< SHA-256 of its bytes
  bool operator==(const Input&) const = default;
};

/// What the ledger records: see leaf_of.
struct Body {
  std::uint32_t version = kReceiptVersion;
  Digest model_digest{};
  std::string canon_version;
  std::vector<AnchorRecord> anchors;  ///< in the order in which they were bound
  core::AnchorBounds anchor_bounds;   ///< floor 0 and ceiling 1 mean none
  std::uint64_t anchors_at = 0;       ///< size of the ledger by which the anchors were in force
  TokenIds sink_tokens;               ///< the prompt is sink, anchors, context
  TokenIds anchor_tokens;
  TokenIds context_tokens;
  SamplingSettings sampling;
  std::int32_t max_tokens = 0;
  std::vector<std::string> stop;
  std::vector<Input> inputs;
  TokenIds output_tokens;
  Digest output_digest{};  ///< digest_of(output_tokens)
  core::FinishReason finish_reason = core::FinishReason::kStop;
  std::vector<core::BlockRecord> kv_blocks;
  std::vector<float>
      anchor_mass;  ///< mean over the output tokens, for each layer, 0 … 1; empty without anchors
  Digest parent{};  ///< leaf hash of the last record before it in its trajectory: see commit/segment.h
  bool operator==(const Body&) const = default;
};

/// A body with the proof that the ledger holds it.
struct Receipt {
  Body body;
  std::uint64_t leaf_index = 0;
  std::uint64_t tree_size = 0;          ///< of the tree that the checkpoint states
  std::vector<Digest> inclusion_proof;  ///< RFC 9162, leaf to root
  std::string checkpoint;               ///< signed note
  std::string verifier_key;             ///< text form of the key that signed it
  /// Four bytes for each field, and four over those, made by seal(). No authority rests on them: they let a
  /// check name the field that was altered, where the ledger's proof could only say that something was.
  Bytes field_checks;
  bool operator==(const Receipt&) const = default;
};

/// SHA-256 over the ids, each as 32 bits, little endian.
Digest digest_of(const TokenIds& tokens);

/// The body as one CBOR map in the core deterministic encoding (RFC 8949 §4.2.1). A value out of its range is
/// the caller's error and names its field.
Result<Bytes> encode_body(const Body& body);

/// What stands in the ledger for an encoded body: the encoding itself, or, where that is longer than a leaf
/// may be (bounds::kMaxLeafBytes, which entry bundles of c2sp.org/tlog-tiles set), the map
/// {"body_bytes": its length, "body_digest": its SHA-256} in the same encoding.
Bytes leaf_of(Bytes encoded_body);

/// The body's leaf hash in the ledger.
Result<Digest> commit_digest(const Body& body);

/// The receipt in the same encoding, the body as a map inside. Settings may be out of their ranges, so that a
/// receipt that states such can be read and refuted; what the format cannot hold is the caller's error.
Result<Bytes> encode(const Receipt& receipt);

/// The inverse of encode, strict: exactly the known fields, of their types, within the format's limits, in
/// the deterministic encoding. Errors name the field, or say that the receipt is of another version.
Result<Receipt> decode(std::span<const std::uint8_t> bytes);

/// A readable view of everything in the receipt: digests in hexadecimal, floats with their bits. Not meant to
/// be read back.
Result<std::string> to_json(const Receipt& receipt);

}  // namespace fieldprint::commit
