#include "commit/validate.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/bounds.h"
#include "base/utf8.h"
#include "core/settings.h"

namespace fieldprint::commit {
namespace {

// Collects the first problem; every test says what is allowed.
class Validator {
 public:
  void require(bool ok, std::string_view field, std::string_view allowed) {
    if (!ok && !first_) first_ = FieldError{std::string(field), std::string(allowed)};
  }

  void at_most(std::size_t count, std::int64_t limit, std::string_view field, std::string_view unit) {
    if (std::cmp_greater(count, limit)) require(false, field, fmt::format("at most {} {}", limit, unit));
  }

  void text(std::string_view text, std::int64_t limit, std::string_view field) {
    at_most(text.size(), limit, field, "bytes");
    require(valid_utf8(text), field, "must be UTF-8");
  }

  void tokens(const TokenIds& tokens, std::string_view field) {
    at_most(tokens.size(), bounds::kMaxContext, field, "tokens");
    require(
        std::all_of(tokens.begin(), tokens.end(), [](auto id) { return id >= 0 && id < bounds::kMaxVocab; }),
        field, fmt::format("token ids must be from 0 to {}", bounds::kMaxVocab - 1));
  }

  void finite(float value, std::string_view field) { require(std::isfinite(value), field, "must be finite"); }

  // NaN fails every comparison, and so every range.
  void range(float value, float low, float high, std::string_view field) {
    require(value >= low && value <= high, field, fmt::format("must be from {} to {}", low, high));
  }

  std::optional<FieldError> first() { return std::move(first_); }

 private:
  std::optional<FieldError> first_;
};

void check_anchors(Validator& v, const Body& body) {
  constexpr std::int64_t kHeadBytes = 1024;  // above an anchor's text: format, type and name
  v.at_most(body.anchors.size(), bounds::kMaxAnchors, "anchors", "anchors");
  for (std::size_t i = 0; i < body.anchors.size(); ++i) {
    v.at_most(body.anchors[i].canonical.size(), bounds::kMaxAnchorBytes + kHeadBytes,
              fmt::format("anchors[{}].canonical", i), "bytes");
  }
}

/// Of a body or of the record that opens its trajectory: what the answer is made from.
template <class T>
void check_settings(Validator& v, const T& from) {
  v.finite(from.anchor_bounds.floor, "anchor_bounds.floor");
  v.finite(from.anchor_bounds.ceiling, "anchor_bounds.ceiling");
  v.finite(from.sampling.temperature, "sampling.temperature");
  v.finite(from.sampling.top_p, "sampling.top_p");
  v.finite(from.sampling.min_p, "sampling.min_p");
  v.finite(from.sampling.repetition_penalty, "sampling.repetition_penalty");
  v.at_most(from.stop.size(), bounds::kMaxStopStrings, "stop", "stop strings");
  for (std::size_t i = 0; i < from.stop.size(); ++i) {
    v.text(from.stop[i], bounds::kMaxStopStringBytes, fmt::format("stop[{}]", i));
  }
  v.at_most(from.inputs.size(), bounds::kMaxInputs, "inputs", "inputs");
  for (std::size_t i = 0; i < from.inputs.size(); ++i) {
    const std::string& kind = from.inputs[i].kind;
    if (kind != "tool_result" && kind != "memory") {
      v.require(false, fmt::format("inputs[{}].kind", i), "must be tool_result or memory");
    }
  }
}

void check_kv_block(Validator& v, const core::BlockRecord& block, const std::string& path) {
  if (block.segment > core::Segment::kContext) {
    v.require(false, path + ".segment", "must be 0 (sink), 1 (anchors) or 2 (context)");
  }
  if (block.index < 0) v.require(false, path + ".index", "must be at least 0");
  if (block.tokens < 1 || block.tokens > core::kBlockTokens) {
    v.require(false, path + ".tokens", fmt::format("must be from 1 to {}", core::kBlockTokens));
  }
}

void check_kv_blocks(Validator& v, const std::vector<core::BlockRecord>& blocks) {
  v.at_most(blocks.size(), bounds::kMaxContext, "kv_blocks", "blocks");
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    check_kv_block(v, blocks[i], fmt::format("kv_blocks[{}]", i));
  }
}

void check_body(Validator& v, const Body& body) {
  v.require(body.version == kReceiptVersion, "version",
            fmt::format("this program reads version {}", kReceiptVersion));
  v.text(body.canon_version, bounds::kMaxCanonVersionBytes, "canon_version");
  check_anchors(v, body);
  v.tokens(body.sink_tokens, "sink_tokens");
  v.tokens(body.anchor_tokens, "anchor_tokens");
  v.tokens(body.context_tokens, "context_tokens");
  check_settings(v, body);
  v.tokens(body.output_tokens, "output_tokens");
  v.require(body.finish_reason <= core::FinishReason::kLength, "finish_reason",
            "must be 0 (stop) or 1 (length)");
  check_kv_blocks(v, body.kv_blocks);
  v.at_most(body.anchor_mass.size(), bounds::kMaxLayers, "anchor_mass", "layers");
  for (std::size_t i = 0; i < body.anchor_mass.size(); ++i) {
    v.range(body.anchor_mass[i], 0, 1, fmt::format("anchor_mass[{}]", i));
  }
}

template <class T>
std::optional<FieldError> find_invalid_setting(const T& from) {
  auto invalid = core::find_invalid(from.anchor_bounds, from.sampling, from.max_tokens, from.stop);
  if (!invalid) return std::nullopt;
  return FieldError{std::move(invalid->field), std::move(invalid->problem)};
}

}  // namespace

std::optional<FieldError> find_malformed(const Body& body) {
  Validator v;
  check_body(v, body);
  return v.first();
}

std::optional<FieldError> find_malformed(const Receipt& receipt) {
  constexpr std::int64_t kMaxFieldCheckBytes = 1024;
  constexpr std::int64_t kMaxKeyTextBytes = bounds::kMaxKeyNameBytes + 64;
  Validator v;
  check_body(v, receipt.body);
  v.at_most(receipt.inclusion_proof.size(), bounds::kMaxProofHashes, "inclusion_proof", "hashes");
  v.text(receipt.checkpoint, bounds::kMaxNoteBytes, "checkpoint");
  v.text(receipt.verifier_key, kMaxKeyTextBytes, "verifier_key");
  v.at_most(receipt.field_checks.size(), kMaxFieldCheckBytes, "field_checks", "bytes");
  return v.first();
}

std::optional<FieldError> find_invalid(const Body& body) {
  if (auto malformed = find_malformed(body)) return malformed;
  return find_invalid_setting(body);
}

std::optional<FieldError> find_invalid(const Receipt& receipt) {
  if (auto malformed = find_malformed(receipt)) return malformed;
  return find_invalid_setting(receipt.body);
}

std::optional<FieldError> find_invalid(const OpenRecord& record) {
  Validator v;
  v.text(record.canon_version, bounds::kMaxCanonVersionBytes, "canon_version");
  v.at_most(record.anchors.size(), bounds::kMaxAnchors, "anchors", "anchors");
  check_settings(v, record);
  v.require(record.prompt_tokens >= 1 && std::cmp_less_equal(record.prompt_tokens, bounds::kMaxContext),
            "prompt_tokens", fmt::format("must be from 1 to {}", bounds::kMaxContext));
  check_kv_blocks(v, record.kv_blocks);
  if (auto malformed = v.first()) return malformed;
  return find_invalid_setting(record);
}

std::optional<FieldError> find_invalid(const SegmentRecord& record) {
  Validator v;
  v.require(record.first >= 0 && record.first < bounds::kMaxContext, "first",
            fmt::format("must be from 0 to {}", bounds::kMaxContext - 1));
  v.require(record.tokens >= 1 && record.tokens <= core::kBlockTokens, "tokens",
            fmt::format("must be from 1 to {}", core::kBlockTokens));
  check_kv_block(v, record.kv_block, "kv_block");
  v.require(record.kv_block.segment == core::Segment::kContext, "kv_block.segment", "must be 2 (context)");
  v.require(record.kv_block.tokens == core::kBlockTokens, "kv_block.tokens",
            fmt::format("must be {}: a full block", core::kBlockTokens));
  return v.first();
}

std::optional<FieldError> find_invalid(const VerdictRecord& record) {
  Validator v;
  v.require(!record.commits.empty(), "commits", "must name at least one commit");
  v.at_most(record.commits.size(), bounds::kMaxVerdictCommits, "commits", "commits");
  v.text(record.reason, bounds::kMaxVerdictReasonBytes, "reason");
  v.require(record.good == record.reason.empty(), "reason", "must be given of a bad commit, and only then");
  v.text(record.reexecuted_on, bounds::kMaxBackendNameBytes, "reexecuted_on");
  return v.first();
}

Error field_error(const FieldError& error, std::string_view what) {
  return caller_error(fmt::format("{} field {}: {}", what, error.field, error.problem));
}

}  // namespace fieldprint::commit
