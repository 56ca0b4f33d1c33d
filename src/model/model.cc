#include "model/model.h"

#include <algorithm>

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

std::int32_t logit_rows_of(const weights::ModelSpec& spec) {
  const std::int64_t rows = kLogitBytes / (std::int64_t{spec.vocab} * 4);
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(rows, 1, kMostLogitRows));
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

Model::Model(const weights::ModelFile& file, backend::Backend& backend, std::int32_t max_tokens)
    : file_(file),
      layers_(file.layers()),
      embedding_(backend.adopt(file.embedding())),
      output_(backend.adopt(file.output())),
      output_norm_(adopt(backend, file.output_norm(), file.spec().dim)),
      backend_(backend),
      max_tokens_(max_tokens),
      max_logit_rows_(logit_rows_of(file.spec())),
      space_(backend, file.spec(), max_tokens, max_logit_rows_) {
  for (weights::LayerWeights& layer : layers_) adopt(backend, layer, file.spec());
}

void Model::upload_inputs(std::span<const SequenceSlice> slices) {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> positions;
  std::vector<std::int32_t> blocks;
  std::vector<std::int32_t> slots;
  logit_rows_.clear();
  for (const SequenceSlice& slice : slices) {
    const std::int32_t count = static_cast<std::int32_t>(slice.tokens.size());
    const core::BlockLayout layout{slice.anchor_tokens};
    for (std::int32_t i = 0; i < count; ++i) {
      const core::TokenPlace place = layout.place(slice.first_position + i);
      if (i >= count - slice.logits) logit_rows_.push_back(static_cast<std::int32_t>(tokens.size()));
      tokens.push_back(slice.tokens[static_cast<std::size_t>(i)]);
      positions.push_back(slice.first_position + i);
      blocks.push_back(slice.blocks[place.block]);
      slots.push_back(place.slot);
    }
  }
  tokens_ = static_cast<std::int32_t>(tokens.size());
  CHECK(tokens_ > 0 && tokens_ <= max_tokens_, "a step of {} tokens, at most {}", tokens_, max_tokens_);
  const std::int64_t bytes = std::int64_t{tokens_} * 4;
  backend_.upload(space_.tokens.data(), tokens.data(), bytes);
  backend_.upload(space_.positions.data(), positions.data(), bytes);
  backend_.upload(space_.blocks.data(), blocks.data(), bytes);
  backend_.upload(space_.slots.data(), slots.data(), bytes);
  backend_.upload(space_.rows.data(), logit_rows_.data(), static_cast<std::int64_t>(logit_rows_.size()) * 4);
  backend_.clear(space_.non_finite.data(), bytes);
}

std::vector<bool> Model::forward(std::span<const SequenceSlice> slices, KvView kv) {
  upload_inputs(slices);
  std::vector<backend::AttentionSequence> sequences;
  std::int32_t first_query = 0;
  for (const SequenceSlice& slice : slices) {
    const std::int32_t count = static_cast<std::int32_t>(slice.tokens.size());
    sequences.push_back({first_query, count, slice.first_position, slice.anchor_tokens, slice.blocks,
                         slice.floor_odds, slice.ceiling_odds});
    first_query += count;
  }

  backend_.plan_attention(sequences, spec().kv_heads);
  const auto layers = [&] {
    backend_.embed({embedding_, space_.tokens.data(), spec().embedding_scale, space_.residual.data()},
                   tokens_);
    for (std::int32_t i = 0; i < spec().layers; ++i) layer(i, kv);
  };
  // Steps of decodes alone come again and again; others hardly ever have the same shape. What is recorded
  // must not change on the way.
  if (tokens_ == static_cast<std::int32_t>(slices.size()) && !qkv_hook_) {
    backend_.repeat(decodes_[{tokens_, kv.pool, kv.block_stride}], layers);
  } else {
    layers();
  }

  std::vector<std::int32_t> flags(static_cast<std::size_t>(tokens_));
  backend_.download(flags.data(), space_.non_finite.data(), std::int64_t{tokens_} * 4);
  std::vector<bool> finite;
  for (const backend::AttentionSequence& sequence : sequences) {
    const auto begin = flags.begin() + sequence.first_query;
    finite.push_back(
        std::all_of(begin, begin + sequence.queries, [](std::int32_t flag) { return flag == 0; }));
  }
  return finite;
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
                        .positions = space_.positions.data(),
                        .blocks = space_.blocks.data(),
                        .slots = space_.slots.data(),
                        .scales = scales,
                        .kv = pages,
                        .q = space_.q.data(),
                        .q_step = space_.q_step.data(),
                        .non_finite = space_.non_finite.data()},
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

std::span<const float> Model::logits(std::int32_t first, std::int32_t count) {
  CHECK(count > 0 && count <= max_logit_rows_ &&
        first + count <= static_cast<std::int32_t>(logit_rows_.size()));
  const PackedWeight& w = output_;
  const QuantRows input = space_.quantised(w.activation, w.cols);
  backend_.norm_quantize(
      {space_.residual.data(), space_.rows.data() + first, output_norm_, spec().norm_epsilon, input}, count);
  backend_.linear({w, input, count, space_.logits.data(), spec().vocab, false});
  const std::int64_t floats = std::int64_t{count} * spec().vocab;
  const void* view = backend_.host_view(space_.logits.data(), floats * 4, logits_staging_);
  return {static_cast<const float*>(view), static_cast<std::size_t>(floats)};
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

std::vector<float> Model::anchor_mass(std::int32_t row) const {
  const std::int64_t heads = spec().heads;
  const std::int64_t token = logit_rows_[static_cast<std::size_t>(row)];
  std::vector<float> by_layer;
  std::vector<float> by_head(static_cast<std::size_t>(heads));
  for (std::int64_t layer = 0; layer < spec().layers; ++layer) {
    backend_.download(by_head.data(), space_.anchor_mass.data() + (layer * tokens_ + token) * heads,
                      heads * 4);
    float sum = 0.0F;
    for (const float mass : by_head) sum += mass;
    by_layer.push_back(sum / static_cast<float>(heads));
  }
  return by_layer;
}

}  // namespace fieldprint::model
