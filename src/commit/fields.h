#pragma once

#include <concepts>
#include <string_view>
#include <type_traits>

#include "commit/receipt.h"
#include "commit/segment.h"

/// The one list of the fields of receipts and records. Encoding, decoding, field checks, the JSON view and
/// the names in errors are all made from it. `visit(name, member)` is called for each field; T may be const.
namespace fieldprint::commit::detail {

template <class T, class U>
concept MaybeConst = std::same_as<std::remove_const_t<T>, U>;

template <MaybeConst<SamplingSettings> T, class Visit>
void for_each_field(T& settings, Visit&& visit) {
  visit("temperature", settings.temperature);
  visit("top_k", settings.top_k);
  visit("top_p", settings.top_p);
  visit("min_p", settings.min_p);
  visit("repetition_penalty", settings.repetition_penalty);
  visit("seed", settings.seed);
}

template <MaybeConst<core::AnchorBounds> T, class Visit>
void for_each_field(T& anchor_bounds, Visit&& visit) {
  visit("floor", anchor_bounds.floor);
  visit("ceiling", anchor_bounds.ceiling);
}

template <MaybeConst<AnchorRecord> T, class Visit>
void for_each_field(T& anchor, Visit&& visit) {
  visit("id", anchor.id);
  visit("canonical", anchor.canonical);
}

template <MaybeConst<Input> T, class Visit>
void for_each_field(T& input, Visit&& visit) {
  visit("kind", input.kind);
  visit("digest", input.digest);
}

template <MaybeConst<Body> T, class Visit>
void for_each_field(T& body, Visit&& visit) {
  visit("version", body.version);
  visit("model_digest", body.model_digest);
  visit("canon_version", body.canon_version);
  visit("anchors", body.anchors);
  visit("anchor_bounds", body.anchor_bounds);
  visit("anchors_at", body.anchors_at);
  visit("sink_tokens", body.sink_tokens);
  visit("anchor_tokens", body.anchor_tokens);
  visit("context_tokens", body.context_tokens);
  visit("sampling", body.sampling);
  visit("max_tokens", body.max_tokens);
  visit("stop", body.stop);
  visit("inputs", body.inputs);
  visit("output_tokens", body.output_tokens);
  visit("output_digest", body.output_digest);
  visit("finish_reason", body.finish_reason);
  visit("kv_blocks", body.kv_blocks);
  visit("anchor_mass", body.anchor_mass);
  visit("parent", body.parent);
}

template <MaybeConst<Receipt> T, class Visit>
void for_each_field(T& receipt, Visit&& visit) {
  visit("body", receipt.body);
  visit("leaf_index", receipt.leaf_index);
  visit("tree_size", receipt.tree_size);
  visit("inclusion_proof", receipt.inclusion_proof);
  visit("checkpoint", receipt.checkpoint);
  visit("verifier_key", receipt.verifier_key);
  visit("field_checks", receipt.field_checks);
}

/// A field that says what a record is: always of this value.
struct RecordName {
  std::string_view text;
};
inline constexpr RecordName kOpenName{"open"};
inline constexpr RecordName kSegmentName{"segment"};
inline constexpr RecordName kVerdictName{"verdict"};

template <MaybeConst<OpenRecord> T, class Visit>
void for_each_field(T& record, Visit&& visit) {
  visit("record", kOpenName);
  visit("model_digest", record.model_digest);
  visit("canon_version", record.canon_version);
  visit("anchors", record.anchors);
  visit("anchor_bounds", record.anchor_bounds);
  visit("anchors_at", record.anchors_at);
  visit("sampling", record.sampling);
  visit("max_tokens", record.max_tokens);
  visit("stop", record.stop);
  visit("inputs", record.inputs);
  visit("prompt_tokens", record.prompt_tokens);
  visit("prompt_digest", record.prompt_digest);
  visit("kv_blocks", record.kv_blocks);
}

template <MaybeConst<SegmentRecord> T, class Visit>
void for_each_field(T& record, Visit&& visit) {
  visit("record", kSegmentName);
  visit("parent", record.parent);
  visit("first", record.first);
  visit("tokens", record.tokens);
  visit("tokens_digest", record.tokens_digest);
  visit("kv_block", record.kv_block);
}

template <MaybeConst<VerdictRecord> T, class Visit>
void for_each_field(T& record, Visit&& visit) {
  visit("record", kVerdictName);
  visit("commits", record.commits);
  visit("good", record.good);
  visit("reason", record.reason);
  visit("head", record.head);
  visit("pages_checked", record.pages_checked);
  visit("reexecuted_on", record.reexecuted_on);
}

/// A struct that is written as a map of its fields.
template <class T>
concept HasFields = MaybeConst<T, SamplingSettings> || MaybeConst<T, core::AnchorBounds> ||
    MaybeConst<T, AnchorRecord> || MaybeConst<T, Input> || MaybeConst<T, Body> || MaybeConst<T, Receipt> ||
    MaybeConst<T, OpenRecord> || MaybeConst<T, SegmentRecord> || MaybeConst<T, VerdictRecord>;

/// "sampling.top_k"; a body's fields go by their own name, without "body.".
inline std::string path_of(std::string_view outer, std::string_view name) {
  if (outer.empty() || outer == "body") return std::string(name);
  return fmt::format("{}.{}", outer, name);
}

}  // namespace fieldprint::commit::detail
