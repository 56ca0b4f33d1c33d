#pragma once

#include <concepts>
#include <string_view>
#include <type_traits>

#include "commit/receipt.h"

/// The one list of a receipt's fields. Encoding, decoding, field checks, the JSON view and the names in
/// errors are all made from it. `visit(name, member)` is called for each field; T may be const.
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

template <MaybeConst<Body> T, class Visit>
void for_each_field(T& body, Visit&& visit) {
  visit("version", body.version);
  visit("model_digest", body.model_digest);
  visit("canon_version", body.canon_version);
  visit("anchors", body.anchors);
  visit("anchor_bounds", body.anchor_bounds);
  visit("sink_tokens", body.sink_tokens);
  visit("anchor_tokens", body.anchor_tokens);
  visit("context_tokens", body.context_tokens);
  visit("sampling", body.sampling);
  visit("max_tokens", body.max_tokens);
  visit("stop", body.stop);
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

/// A struct that is written as a map of its fields.
template <class T>
concept HasFields = MaybeConst<T, SamplingSettings> || MaybeConst<T, core::AnchorBounds> ||
    MaybeConst<T, AnchorRecord> || MaybeConst<T, Body> || MaybeConst<T, Receipt>;

/// "sampling.top_k"; a body's fields go by their own name, without "body.".
inline std::string path_of(std::string_view outer, std::string_view name) {
  if (outer.empty() || outer == "body") return std::string(name);
  return fmt::format("{}.{}", outer, name);
}

}  // namespace fieldprint::commit::detail
