#include "model/model.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "exact/format.h"
#include "weights/kv_scales.h"

namespace fieldprint::model {
namespace {

using backend::PackedWeight;
using backend::QuantRows;

// 16 MiB of logits: enough rows to reuse the output matrix from cache, small beside any model.
constexpr std::int64_t kLogitBytes = 16LL << 20;
constexpr std::int32_t kMostLogitRows = 64;
constexpr std::int64_t kMassesAtOnce = 1 << 20;  ///< floats, less than a transfer takes to begin

std::int32_t logit_rows_of(const weights::ModelSpec& spec, std::int32_t max_choices) {
  const std::int64_t rows = kLogitBytes / (std::int64_t{spec.vocab} * 4);
  return std::max(static_cast<std::int32_t>(std::clamp<std::int64_t>(rows, 1, kMostLogitRows)), max_choices);
}

/// Where the device reads `count` floats of the file; null stays null.
const float* adopt(backend::Backend& device, const float* host, std::int64_t count) {
  return host == nullptr ? nullptr : static_cast<const float*>(device.adopt(host, count * 4));
}

void adopt(backend::Backend& device, weights::LayerWeights& layer, const weights::ModelSpec& spec) {
  for (PackedWeight& part : layer.qkv) part = device.adopt(part);
  for (PackedWeight& part : layer.gate_up) part = device.adopt(part);
  layer.attention_output = device.adopt(layer.attention_output);
  layer.down = device.adopt(layer.down);
  for (const float** norm :
       {&layer.attention_norm, &layer.post_attention_norm, &layer.ffn_norm, &layer.post_ffn_norm}) {
    *norm = adopt(device, *norm, spec.dim);
  }
  layer.q_norm = adopt(device, layer.q_norm, spec.head_dim);
  layer.k_norm = adopt(device, layer.k_norm, spec.head_dim);
  layer.kv_scales = adopt(device, layer.kv_scales, spec.kv_heads * weights::kv_scale_columns(spec.head_dim));
  const std::int64_t half = spec.head_dim / 2;
  const std::int64_t high = (spec.context + exact::kRopeLow - 1) / exact::kRopeLow * half;
  layer.rope = {adopt(device, layer.rope.high_cos, high), adopt(device, layer.rope.high_sin, high),
                adopt(device, layer.rope.low_cos, exact::kRopeLow * half),
                adopt(device, layer.rope.low_sin, exact::kRopeLow * half)};
}

}  // namespace

Model::Model(const weights::ModelFile& file, backend::Backend& backend, std::int32_t max_tokens,
             std::int32_t max_choices)
    : file_(file),
      layers_(file.layers()),
      embedding_(backend.adopt(file.embedding())),
      output_(backend.adopt(file.output())),
      output_norm_(adopt(backend, file.output_norm(), file.spec().dim)),
      backend_(backend),
      max_tokens_(max_tokens),
      max_logit_rows_(logit_rows_of(file.spec(), max_choices)),
      space_(backend, file.spec(), max_tokens, max_logit_rows_) {
  for (weights::LayerWeights& layer : layers_) adopt(backend, layer, file.spec());
}

void Model::upload_inputs(std::span<const SequenceSlice> slices, std::span<const RowChoice> choices) {
  logit_rows_.clear();
  slice_ends_.clear();
  std::size_t total = 0;
  for (const SequenceSlice& slice : slices) {
    total += slice.tokens.size();
    slice_ends_.push_back(static_cast<std::int32_t>(total));
  }
  tokens_ = static_cast<std::int32_t>(total);
  CHECK(tokens_ > 0 && tokens_ <= max_tokens_, "a step of {} tokens, at most {}", tokens_, max_tokens_);
  space_.lay_out(tokens_);
  const std::int32_t* base = space_.inputs.data();
  // The same places in host memory.
  std::vector<std::int32_t> packed(
      static_cast<std::size_t>(reinterpret_cast<std::int32_t*>(space_.step.choices + choices.size()) - base));
  const auto at = [&](const std::int32_t* column) { return packed.data() + (column - base); };
  std::int32_t token = 0;
  for (const SequenceSlice& slice : slices) {
    const std::int32_t count = static_cast<std::int32_t>(slice.tokens.size());
    const core::BlockLayout layout{slice.anchor_tokens};
    for (std::int32_t i = 0; i < count; ++i, ++token) {
      const core::TokenPlace place = layout.place(slice.first_position + i);
      if (i >= count - slice.logits) logit_rows_.push_back(token);
      at(space_.step.tokens)[token] = slice.tokens[static_cast<std::size_t>(i)];
      at(space_.step.positions)[token] = slice.first_position + i;
      at(space_.step.blocks)[token] = slice.blocks[place.block];
      at(space_.step.slots)[token] = place.slot;
    }
  }
  CHECK(choices.empty() || choices.size() == logit_rows_.size(), "{} choices for {} rows", choices.size(),
        logit_rows_.size());
  std::copy(logit_rows_.begin(), logit_rows_.end(), at(space_.step.rows));
  auto* choice = reinterpret_cast<std::int32_t*>(space_.step.choices);
  for (std::size_t i = 0; i < choices.size(); ++i) {
    std::memcpy(at(choice) + i * (sizeof(exact::TokenChoice) / 4), &choices[i].choice,
                sizeof(exact::TokenChoice));
  }
  upload_seen(choices);
  backend_.upload(space_.inputs.data(), packed.data(), static_cast<std::int64_t>(packed.size()) * 4);
}

void Model::upload_seen(std::span<const RowChoice> choices) {
  const std::int64_t words = exact::seen_words(spec().vocab);
  std::uint32_t* to = space_.seen.data();
  for (const RowChoice& row : choices) {
    if (row.choice.penalty != 1.0F) {
      CHECK(static_cast<std::int64_t>(row.seen.size()) == words);
      backend_.upload(to, row.seen.data(), words * 4);
    }
    to += words;
  }
}

void Model::begin(std::span<const SequenceSlice> slices, KvView kv, std::span<const RowChoice> choices) {
  choices_ = static_cast<std::int32_t>(choices.size());
  CHECK(choices_ <= max_logit_rows_, "{} choices, at most {}", choices_, max_logit_rows_);
  upload_inputs(slices, choices);
  masses_.clear();
  std::vector<backend::AttentionSequence> sequences;
  std::int32_t first_query = 0;
  for (const SequenceSlice& slice : slices) {
    const std::int32_t count = static_cast<std::int32_t>(slice.tokens.size());
    sequences.push_back({first_query, count, slice.first_position, slice.anchor_tokens, slice.blocks,
                         slice.floor_odds, slice.ceiling_odds});
    first_query += count;
  }
  backend_.plan_attention(sequences, spec().heads, spec().kv_heads);
  const auto operations = [&] {
    backend_.embed({embedding_, space_.step.tokens, spec().embedding_scale, space_.residual.data()}, tokens_);
    for (std::int32_t i = 0; i < spec().layers; ++i) layer(i, kv);
    if (choices_ == 0) return;
    compute_logits(0, choices_);
    choose_tokens(choices_);
  };
  // Steps of decodes alone come again and again; others hardly ever have the same shape. What is recorded
  // must not change on the way.
  if (tokens_ == static_cast<std::int32_t>(slices.size()) && !qkv_hook_) {
    backend_.repeat(decodes_[{tokens_, choices_, kv.pool, kv.block_stride}], operations);
  } else {
    operations();
  }
}

StepResult Model::finish() {
  // One after the other in memory, and so in one transfer.
  std::vector<std::int32_t> back(static_cast<std::size_t>(tokens_ + choices_));
  backend_.download(back.data(), space_.step.non_finite, static_cast<std::int64_t>(back.size()) * 4);
  StepResult result;
  auto begin = back.cbegin();
  for (const std::int32_t end : slice_ends_) {
    result.finite.push_back(
        std::all_of(begin, back.cbegin() + end, [](std::int32_t flag) { return flag == 0; }));
    begin = back.cbegin() + end;
  }
  result.tokens.assign(begin, back.cend());
  return result;
}

std::vector<bool> Model::forward(std::span<const SequenceSlice> slices, KvView kv) {
  begin(slices, kv, {});
  return finish().finite;
}

void Model::layer(std::int32_t index, KvView kv) {
  const weights::LayerWeights& w = layers_[static_cast<std::size_t>(index)];
  const weights::ModelSpec& s = spec();
  project(w.qkv, w.attention_norm, space_.qkv.data(), (s.heads + 2 * s.kv_heads) * s.head_dim);
  if (qkv_hook_) show_qkv(index);
  attend(index, kv);
  const QuantRows attended = space_.quantised(w.attention_output.activation, s.heads * s.head_dim);
  backend_.quantize({space_.wide.data(), attended}, tokens_);
  add_output(w.attention_output, attended, w.post_attention_norm);

  project(w.gate_up, w.ffn_norm, space_.wide.data(), 2 * std::int64_t{s.hidden});
  const QuantRows gated = space_.quantised(w.down.activation, s.hidden);
  backend_.gated_quantize({space_.wide.data(), s.gate, gated}, tokens_);
  add_output(w.down, gated, w.post_ffn_norm);
}

void Model::show_qkv(std::int32_t index) {
  const std::int64_t floats = std::int64_t{tokens_} * (spec().heads + 2 * spec().kv_heads) * spec().head_dim;
  std::vector<std::uint8_t> staging;
  const void* view = backend_.host_view(space_.qkv.data(), floats * 4, staging);
  qkv_hook_(index, {static_cast<const float*>(view), static_cast<std::size_t>(floats)});
}

void Model::attend(std::int32_t index, KvView kv) {
  const weights::LayerWeights& w = layers_[static_cast<std::size_t>(index)];
  const weights::ModelSpec& s = spec();
  const backend::KvLayer pages{kv.pool, kv.block_stride,
                               index * s.kv_heads * backend::page_bytes(s.head_dim)};
  const backend::KvScales scales = weights::kv_scales_of(w.kv_scales, s.kv_heads, s.head_dim);
  backend_.rope_append({.qkv = space_.qkv.data(),
                        .heads = s.heads,
                        .kv_heads = s.kv_heads,
                        .head_dim = s.head_dim,
                        .q_norm = w.q_norm,
                        .k_norm = w.k_norm,
                        .epsilon = s.norm_epsilon,
                        .rope = w.rope,
                        .positions = space_.step.positions,
                        .blocks = space_.step.blocks,
                        .slots = space_.step.slots,
                        .scales = scales,
                        .kv = pages,
                        .q = space_.q.data(),
                        .q_step = space_.q_step.data(),
                        .non_finite = space_.step.non_finite},
                       tokens_);
  backend_.attention({.heads = s.heads,
                      .kv_heads = s.kv_heads,
                      .head_dim = s.head_dim,
                      .window = w.local ? s.window : 0,
                      .q = space_.q.data(),
                      .q_step = space_.q_step.data(),
                      .scales = scales,
                      .kv = pages,
                      .sequences = nullptr,
                      .preface_items = nullptr,
                      .context_items = nullptr,
                      .states = space_.states.data(),
                      .out = space_.wide.data(),
                      .anchor_mass = space_.anchor_mass.data() + std::int64_t{index} * tokens_ * s.heads});
}

void Model::project(std::span<const PackedWeight> parts, const float* norm, float* out, std::int64_t stride) {
  const PackedWeight* previous = nullptr;
  QuantRows input{};
  for (const PackedWeight& part : parts) {
    if (previous == nullptr || previous->activation != part.activation) {
      input = space_.quantised(part.activation, part.cols);
      backend_.norm_quantize({space_.residual.data(), nullptr, norm, spec().norm_epsilon, input}, tokens_);
    }
    backend_.linear({part, input, tokens_, out, stride, false});
    out += part.rows;
    previous = &part;
  }
}

void Model::add_output(const PackedWeight& w, const QuantRows& input, const float* post_norm) {
  if (post_norm == nullptr) {
    backend_.linear({w, input, tokens_, space_.residual.data(), spec().dim, true});
    return;
  }
  backend_.linear({w, input, tokens_, space_.wide.data(), spec().dim, false});
  backend_.norm_add({space_.wide.data(), post_norm, spec().norm_epsilon, spec().dim, space_.residual.data()},
                    tokens_);
}

void Model::compute_logits(std::int32_t first, std::int32_t count) {
  const PackedWeight& w = output_;
  QuantRows input = space_.quantised(w.activation, w.cols);
  input.non_finite = space_.logit_flags.data();
  backend_.norm_quantize(
      {space_.residual.data(), space_.step.rows + first, output_norm_, spec().norm_epsilon, input}, count);
  backend_.linear({w, input, count, space_.logits.data(), spec().vocab, false});
}

void Model::choose_tokens(std::int32_t count) {
  backend_.choose(
      {space_.logits.data(), spec().vocab, space_.step.choices, space_.seen.data(), space_.step.chosen},
      count);
}

std::vector<std::int32_t> Model::choose(std::int32_t first, std::span<const RowChoice> choices) {
  const auto count = static_cast<std::int32_t>(choices.size());
  CHECK(choices_ == 0 && count > 0 && count <= max_logit_rows_ &&
        first + count <= static_cast<std::int32_t>(logit_rows_.size()));
  std::vector<exact::TokenChoice> packed;
  for (const RowChoice& row : choices) packed.push_back(row.choice);
  backend_.upload(space_.step.choices, packed.data(),
                  static_cast<std::int64_t>(packed.size() * sizeof(exact::TokenChoice)));
  upload_seen(choices);
  compute_logits(first, count);
  choose_tokens(count);
  std::vector<std::int32_t> tokens(choices.size());
  backend_.download(tokens.data(), space_.step.chosen, std::int64_t{count} * 4);
  return tokens;
}

std::span<const float> Model::logits(std::int32_t first, std::int32_t count) {
  CHECK(count > 0 && count <= max_logit_rows_ &&
        first + count <= static_cast<std::int32_t>(logit_rows_.size()));
  compute_logits(first, count);
  const std::int64_t floats = std::int64_t{count} * spec().vocab;
  const void* view = backend_.host_view(space_.logits.data(), floats * 4, logits_staging_);
  return {static_cast<const float*>(view), static_cast<std::size_t>(floats)};
}

std::span<const float> Model::chosen_logits(std::int32_t row) {
  CHECK(row >= 0 && row < choices_);
  const void* view = backend_.host_view(space_.logits.data() + std::int64_t{row} * spec().vocab,
                                        std::int64_t{spec().vocab} * 4, logits_staging_);
  return {static_cast<const float*>(view), static_cast<std::size_t>(spec().vocab)};
}

void Model::set_logits(std::int32_t row, std::span<const float> logits) {
  backend_.upload(space_.logits.data() + std::int64_t{row} * spec().vocab, logits.data(),
                  std::int64_t{spec().vocab} * 4);
}

std::span<const std::int32_t> Model::probabilities(std::int32_t row, float scale) {
  backend_.upload(space_.probability_scale.data(), &scale, sizeof scale);
  backend_.probabilities({space_.logits.data() + std::int64_t{row} * spec().vocab, spec().vocab,
                          space_.probability_scale.data(), space_.probabilities.data()},
                         1);
  const void* view =
      backend_.host_view(space_.probabilities.data(), std::int64_t{spec().vocab} * 4, probabilities_staging_);
  return {static_cast<const std::int32_t*>(view), static_cast<std::size_t>(spec().vocab)};
}

void Model::use_activation(weights::LinearRole role, backend::ActivationFormat format) {
  decodes_.clear();
  const auto apply = [&](PackedWeight& w) {
    if (w.format == backend::LinearFormat::kW8R) w.activation = format;
  };
  if (role == weights::LinearRole::kOutput) apply(output_);
  for (weights::LayerWeights& layer : layers_) {
    if (role == weights::LinearRole::kQkv) std::for_each(layer.qkv.begin(), layer.qkv.end(), apply);
    if (role == weights::LinearRole::kGateUp)
      std::for_each(layer.gate_up.begin(), layer.gate_up.end(), apply);
    if (role == weights::LinearRole::kAttentionOutput) apply(layer.attention_output);
    if (role == weights::LinearRole::kDown) apply(layer.down);
  }
}

void Model::set_kv_scales(std::int32_t layer, std::span<const float> section) {
  CHECK(static_cast<std::int64_t>(section.size()) ==
        spec().kv_heads * weights::kv_scale_columns(spec().head_dim));
  decodes_.clear();
  const auto floats = static_cast<std::int64_t>(section.size());
  own_scales_.push_back(std::make_unique<DeviceArray<float>>(backend_, floats));
  backend_.upload(own_scales_.back()->data(), section.data(), floats * 4);
  layers_[static_cast<std::size_t>(layer)].kv_scales = own_scales_.back()->data();
}

std::vector<float> Model::anchor_mass(std::int32_t row) {
  const std::int64_t heads = spec().heads;
  const std::int64_t token = logit_rows_[static_cast<std::size_t>(row)];
  // Of a decode step all rows are wanted; of a long prefill one of many.
  const std::int64_t all = spec().layers * tokens_ * heads;
  if (masses_.empty() && all <= kMassesAtOnce) {
    masses_.resize(static_cast<std::size_t>(all));
    backend_.download(masses_.data(), space_.anchor_mass.data(), all * 4);
  }
  std::vector<float> by_layer;
  std::vector<float> by_head(static_cast<std::size_t>(heads));
  for (std::int64_t layer = 0; layer < spec().layers; ++layer) {
    const std::int64_t first = (layer * tokens_ + token) * heads;
    if (masses_.empty()) {
      backend_.download(by_head.data(), space_.anchor_mass.data() + first, heads * 4);
    } else {
      std::copy_n(masses_.begin() + first, heads, by_head.begin());
    }
    float sum = 0.0F;
    for (const float mass : by_head) sum += mass;
    by_layer.push_back(sum / static_cast<float>(heads));
  }
  return by_layer;
}

}  // namespace fieldprint::model
