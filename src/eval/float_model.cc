#include "eval/float_model.h"

#include <cblas.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "exact/format.h"

namespace fieldprint::eval {
namespace {

using weights::TensorRole;

constexpr std::int64_t kRowGrain = 32;
constexpr std::int64_t kOutputGrain = 256;  ///< output channels of a linear that one thread takes at a time
constexpr std::int64_t kQueryTile = 128;
constexpr float kLn2 = 0.69314718F;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

/// out = x / rms(x) · weight; out may be x.
void rms_norm(const float* x, const std::vector<float>& weight, float epsilon, float* out) {
  double squares = 0;
  for (std::size_t i = 0; i < weight.size(); ++i)
    squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  const double mean = squares / static_cast<double>(weight.size());
  const float factor = static_cast<float>(1.0 / std::sqrt(mean + static_cast<double>(epsilon)));
  for (std::size_t i = 0; i < weight.size(); ++i) out[i] = x[i] * factor * weight[i];
}

/// Turns channels i and i + D/2 of a head together.
void rotate(float* head, std::int64_t half, const float* cos, const float* sin) {
  for (std::int64_t i = 0; i < half; ++i) {
    const float a = head[i];
    const float b = head[i + half];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half] = a * sin[i] + b * cos[i];
  }
}

float silu(float x) { return x / (1.0F + std::exp(-x)); }

/// The tanh form of GELU (Hendrycks and Gimpel, 2016).
float gelu(float x) {
  constexpr float kSqrtTwoOverPi = 0.79788456F;
  return 0.5F * x * (1.0F + std::tanh(kSqrtTwoOverPi * (x + 0.044715F * x * x * x)));
}

/// Softmax of row[begin, end) in place; the rest of row[0, size) becomes zero.
void masked_softmax(float* row, std::int64_t begin, std::int64_t end, std::int64_t size) {
  const float maximum = *std::max_element(row + begin, row + end);
  double sum = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    row[i] = std::exp(row[i] - maximum);
    sum += static_cast<double>(row[i]);
  }
  const float inverse = static_cast<float>(1.0 / sum);
  for (std::int64_t i = begin; i < end; ++i) row[i] *= inverse;
  std::fill(row, row + begin, 0.0F);
  std::fill(row + end, row + size, 0.0F);
}

}  // namespace

FloatModel::FloatModel(std::unique_ptr<weights::FloatSource> source, int threads)
    : source_(std::move(source)), pool_(threads) {
  openblas_set_num_threads(1);
  embedding_ = source_->tensor(TensorRole::kEmbedding, 0);
  if (!source_->tied()) output_ = source_->tensor(TensorRole::kOutput, 0);
  output_norm_ = source_->tensor(TensorRole::kOutputNorm, 0);
  for (std::int32_t i = 0; i < spec().layers; ++i) layers_.push_back(load_layer(i));
}

FloatModel::Layer FloatModel::load_layer(std::int32_t index) const {
  const auto load = [&](TensorRole role) {
    return source_->has(role, index) ? source_->tensor(role, index) : Floats();
  };
  return {.attention_norm = load(TensorRole::kAttentionNorm),
          .query = load(TensorRole::kQuery),
          .key = load(TensorRole::kKey),
          .value = load(TensorRole::kValue),
          .q_norm = load(TensorRole::kQNorm),
          .k_norm = load(TensorRole::kKNorm),
          .attention_output = load(TensorRole::kAttentionOutput),
          .post_attention_norm = load(TensorRole::kPostAttentionNorm),
          .ffn_norm = load(TensorRole::kFfnNorm),
          .gate = load(TensorRole::kGate),
          .up = load(TensorRole::kUp),
          .down = load(TensorRole::kDown),
          .post_ffn_norm = load(TensorRole::kPostFfnNorm)};
}

FloatModel::Rotations FloatModel::rotations(const backend::RopeTable& table) const {
  const std::int64_t half = spec().head_dim / 2;
  Rotations out;
  for (std::int64_t position = 0; position < tokens_; ++position) {
    for (std::int64_t i = 0; i < half; ++i) {
      const std::int64_t high = position / exact::kRopeLow * half + i;
      const std::int64_t low = position % exact::kRopeLow * half + i;
      const double ch = static_cast<double>(table.high_cos[high]);
      const double sh = static_cast<double>(table.high_sin[high]);
      const double cl = static_cast<double>(table.low_cos[low]);
      const double sl = static_cast<double>(table.low_sin[low]);
      out.cos.push_back(static_cast<float>(ch * cl - sh * sl));
      out.sin.push_back(static_cast<float>(sh * cl + ch * sl));
    }
  }
  return out;
}

void FloatModel::multiply(const float* x, std::int64_t rows, std::int64_t columns, const Floats& w,
                          float* out) {
  const std::int64_t channels = static_cast<std::int64_t>(w.size()) / columns;
  pool_.parallel_for(channels, kOutputGrain, [&](std::int64_t begin, std::int64_t end) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<blasint>(rows),
                static_cast<blasint>(end - begin), static_cast<blasint>(columns), 1.0F, x,
                static_cast<blasint>(columns), w.data() + begin * columns, static_cast<blasint>(columns),
                0.0F, out + begin, static_cast<blasint>(channels));
  });
}

void FloatModel::forward(std::span<const std::int32_t> tokens) {
  const weights::ModelSpec& s = spec();
  tokens_ = static_cast<std::int64_t>(tokens.size());
  CHECK(tokens_ > 0 && tokens_ <= s.context);
  residual_.resize(at(tokens_ * s.dim));
  for (Floats* buffer : {&normed_, &sub_layer_}) buffer->resize(residual_.size());
  for (Floats* buffer : {&query_, &attended_}) buffer->resize(at(tokens_ * s.heads * s.head_dim));
  for (Floats* buffer : {&key_, &value_}) buffer->resize(at(tokens_ * s.kv_heads * s.head_dim));
  for (Floats* buffer : {&gate_, &up_}) buffer->resize(at(tokens_ * s.hidden));
  for (std::int64_t t = 0; t < tokens_; ++t) {
    const std::int32_t id = tokens[at(t)];
    CHECK(id >= 0 && id < s.vocab);
    for (std::int64_t i = 0; i < s.dim; ++i) {
      residual_[at(t * s.dim + i)] = embedding_[at(std::int64_t{id} * s.dim + i)] * s.embedding_scale;
    }
  }
  bool has_global = false;
  bool has_local = false;
  for (std::int32_t i = 0; i < s.layers; ++i) {
    bool& has = source_->local(i) ? has_local : has_global;
    if (!has) (source_->local(i) ? local_rotations_ : global_rotations_) = rotations(source_->rope(i));
    has = true;
    attention_block(i);
    feed_forward_block(layers_[at(i)]);
  }
}

void FloatModel::attention_block(std::int32_t index) {
  const weights::ModelSpec& s = spec();
  const Layer& layer = layers_[at(index)];
  const bool local = source_->local(index);
  const Rotations& turn = local ? local_rotations_ : global_rotations_;
  const std::int64_t half = s.head_dim / 2;
  pool_.parallel_for(tokens_, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      rms_norm(&residual_[at(t * s.dim)], layer.attention_norm, s.norm_epsilon, &normed_[at(t * s.dim)]);
    }
  });
  multiply(normed_.data(), tokens_, s.dim, layer.query, query_.data());
  multiply(normed_.data(), tokens_, s.dim, layer.key, key_.data());
  multiply(normed_.data(), tokens_, s.dim, layer.value, value_.data());
  const auto prepare = [&](float* heads, std::int64_t count, const Floats& norm, std::int64_t t) {
    for (std::int64_t h = 0; h < count; ++h) {
      float* const head = heads + (t * count + h) * s.head_dim;
      if (!norm.empty()) rms_norm(head, norm, s.norm_epsilon, head);
      rotate(head, half, &turn.cos[at(t * half)], &turn.sin[at(t * half)]);
    }
  };
  pool_.parallel_for(tokens_, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      prepare(query_.data(), s.heads, layer.q_norm, t);
      prepare(key_.data(), s.kv_heads, layer.k_norm, t);
    }
  });
  attend(local);
  multiply(attended_.data(), tokens_, s.heads * s.head_dim, layer.attention_output, sub_layer_.data());
  add_to_residual(sub_layer_, layer.post_attention_norm);
}

void FloatModel::attend(bool local) {
  const std::int64_t tiles = (tokens_ + kQueryTile - 1) / kQueryTile;
  pool_.parallel_for(tiles * spec().heads, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t item = first; item < last; ++item) {
      const std::int64_t begin = item % tiles * kQueryTile;
      attend_tile(item / tiles, begin, std::min(begin + kQueryTile, tokens_), local);
    }
  });
}

void FloatModel::attend_tile(std::int64_t head, std::int64_t begin, std::int64_t end, bool local) {
  const weights::ModelSpec& s = spec();
  const std::int64_t window = local && s.window > 0 ? s.window : tokens_;
  const std::int64_t first_key = std::max<std::int64_t>(0, begin - window + 1);
  const std::int64_t keys = end - first_key;
  const std::int64_t kv_head = head / (s.heads / s.kv_heads);
  const blasint query_stride = s.heads * s.head_dim;
  const blasint key_stride = s.kv_heads * s.head_dim;
  const std::int64_t query_at = begin * query_stride + head * s.head_dim;
  const std::int64_t key_at = first_key * key_stride + kv_head * s.head_dim;
  const auto queries = static_cast<blasint>(end - begin);
  Floats scores(at((end - begin) * keys));
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, queries, static_cast<blasint>(keys), s.head_dim,
              s.score_scale * kLn2, &query_[at(query_at)], query_stride, &key_[at(key_at)], key_stride, 0.0F,
              scores.data(), static_cast<blasint>(keys));
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t oldest = std::max<std::int64_t>(0, t - window + 1);
    masked_softmax(&scores[at((t - begin) * keys)], oldest - first_key, t + 1 - first_key, keys);
  }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, queries, s.head_dim, static_cast<blasint>(keys),
              1.0F, scores.data(), static_cast<blasint>(keys), &value_[at(key_at)], key_stride, 0.0F,
              &attended_[at(query_at)], query_stride);
}

void FloatModel::feed_forward_block(const Layer& layer) {
  const weights::ModelSpec& s = spec();
  pool_.parallel_for(tokens_, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      rms_norm(&residual_[at(t * s.dim)], layer.ffn_norm, s.norm_epsilon, &normed_[at(t * s.dim)]);
    }
  });
  multiply(normed_.data(), tokens_, s.dim, layer.gate, gate_.data());
  multiply(normed_.data(), tokens_, s.dim, layer.up, up_.data());
  pool_.parallel_for(tokens_ * s.hidden, kRowGrain * s.hidden, [&](std::int64_t begin, std::int64_t end) {
    for (std::size_t i = at(begin); i < at(end); ++i) {
      gate_[i] = (s.gate == backend::GateFunction::kGelu ? gelu(gate_[i]) : silu(gate_[i])) * up_[i];
    }
  });
  multiply(gate_.data(), tokens_, s.hidden, layer.down, sub_layer_.data());
  add_to_residual(sub_layer_, layer.post_ffn_norm);
}

void FloatModel::add_to_residual(Floats& x, const Floats& post_norm) {
  const std::int64_t dim = spec().dim;
  pool_.parallel_for(tokens_, kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      float* const row = &x[at(t * dim)];
      if (!post_norm.empty()) rms_norm(row, post_norm, spec().norm_epsilon, row);
      for (std::int64_t i = 0; i < dim; ++i) residual_[at(t * dim + i)] += row[i];
    }
  });
}

std::span<const float> FloatModel::logits(std::int64_t first, std::int64_t count) {
  const weights::ModelSpec& s = spec();
  CHECK(first >= 0 && count > 0 && first + count <= tokens_);
  for (std::int64_t row = 0; row < count; ++row) {
    rms_norm(&residual_[at((first + row) * s.dim)], output_norm_, s.norm_epsilon, &normed_[at(row * s.dim)]);
  }
  logits_.resize(at(count * s.vocab));
  multiply(normed_.data(), count, s.dim, output_.empty() ? embedding_ : output_, logits_.data());
  return logits_;
}

}  // namespace fieldprint::eval
