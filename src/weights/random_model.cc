#include "weights/random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>

#include "base/bounds.h"
#include "exact/format.h"
#include "weights/fpm_reader.h"
#include "weights/kv_scales.h"
#include "weights/rope_table.h"

namespace fieldprint::weights {
namespace {

struct alignas(64) CacheLine {
  std::uint8_t bytes[64];
};

/// Tensors in memory, at the alignment of a model file's sections, filled as they are asked for.
class Tensors {
 public:
  explicit Tensors(std::uint64_t seed) : state_(seed * 2 + 1) {}

  const float* floats(std::int64_t count, float value) {
    float* out = reinterpret_cast<float*>(allocate(count * 4));
    std::fill_n(out, count, value);
    return out;
  }
  const float* copy(const std::vector<float>& values) {
    const std::size_t bytes = values.size() * sizeof(float);
    std::uint8_t* out = allocate(static_cast<std::int64_t>(bytes));
    std::memcpy(out, values.data(), bytes);
    return reinterpret_cast<const float*>(out);
  }
  /// Rows of norm about one, so that each layer answers in the scale of its input.
  backend::PackedWeight matrix(std::int64_t rows, std::int64_t cols, backend::ActivationFormat activation) {
    const std::int64_t padded = padded_rows(rows);
    std::uint8_t* data = allocate(padded * cols);
    for (std::int64_t i = 0; i < padded * cols; i += 8) {
      const std::uint64_t random = next();
      std::memcpy(data + i, &random, sizeof random);
    }
    constexpr float kByteDeviation = 74.0F;
    const float scale = 1.0F / (kByteDeviation * std::sqrt(static_cast<float>(cols)));
    return {backend::LinearFormat::kW8R,     activation, static_cast<std::int32_t>(rows),
            static_cast<std::int32_t>(cols), data,       floats(padded, scale)};
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  /// xorshift64* (Vigna 2016): fast, and without a pattern that a memory or a multiplier could use.
  std::uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545F4914F6CDD1DULL;
  }
  std::uint8_t* allocate(std::int64_t bytes) {
    const std::size_t lines = (static_cast<std::size_t>(bytes) + sizeof(CacheLine) - 1) / sizeof(CacheLine);
    memory_.push_back(std::make_unique_for_overwrite<CacheLine[]>(lines));
    bytes_ += bytes;
    return memory_.back()[0].bytes;
  }

  std::uint64_t state_;
  std::deque<std::unique_ptr<CacheLine[]>> memory_;
  std::int64_t bytes_ = 0;
};

/// Keys and values are about normal with deviation 1: 4 deviations are 127 levels.
std::vector<float> random_kv_scales(const ModelSpec& spec) {
  constexpr float kScale = 4.0F / 127.0F;
  KvCalibration calibration = unit_kv_calibration(spec.kv_heads, spec.head_dim);
  std::fill(calibration.k_scale.begin(), calibration.k_scale.end(), kScale);
  std::fill(calibration.v_scale.begin(), calibration.v_scale.end(), kScale);
  return kv_scale_section(calibration, spec.score_scale);
}

LayerWeights random_layer(const ModelSpec& spec, backend::ActivationFormat activation,
                          const backend::RopeTable& rope, Tensors& tensors) {
  LayerWeights layer;
  const std::int64_t width = std::int64_t{spec.heads} * spec.head_dim;
  const std::int64_t kv_width = std::int64_t{spec.kv_heads} * spec.head_dim;
  layer.attention_norm = tensors.floats(spec.dim, 1.0F);
  layer.qkv = {tensors.matrix(width + 2 * kv_width, spec.dim, activation)};
  layer.kv_scales = tensors.copy(random_kv_scales(spec));
  layer.attention_output = tensors.matrix(spec.dim, width, activation);
  layer.ffn_norm = tensors.floats(spec.dim, 1.0F);
  layer.gate_up = {tensors.matrix(2 * std::int64_t{spec.hidden}, spec.dim, activation)};
  layer.down = tensors.matrix(spec.dim, spec.hidden, activation);
  layer.rope = rope;
  return layer;
}

Status check(const ModelSpec& spec) {
  const auto fits = [](std::int64_t x, std::int64_t most) { return x >= 32 && x % 32 == 0 && x <= most; };
  const bool matrices = fits(spec.dim, bounds::kMaxDim) && fits(spec.hidden, bounds::kMaxDim) &&
                        fits(spec.head_dim, bounds::kMaxHeadDim);
  const bool heads = spec.kv_heads > 0 && spec.heads % spec.kv_heads == 0 &&
                     spec.heads <= bounds::kMaxHeads && spec.heads / spec.kv_heads <= bounds::kMaxGroup;
  const bool sizes = spec.layers > 0 && spec.layers <= bounds::kMaxLayers && spec.vocab > 0 &&
                     spec.vocab <= bounds::kMaxVocab && spec.context > 0 &&
                     spec.context <= bounds::kMaxContext;
  if (matrices && heads && sizes) return {};
  return caller_error(
      "no such shape: dim, hidden and head size must be multiples of 32, and heads a multiple of KV heads");
}

}  // namespace

Result<std::unique_ptr<ModelFile>> random_model(const ModelSpec& spec, backend::ActivationFormat activation,
                                                std::uint64_t seed) {
  if (Status status = check(spec); !status) return status.error();
  auto tensors = std::make_shared<Tensors>(seed);
  FpmContents contents;
  contents.spec = spec;
  const std::int32_t high_rows = rope_high_rows(spec.context);
  const float* table = tensors->copy(rope_table(rope_frequencies(10000.0, spec.head_dim), high_rows));
  const std::int64_t high = std::int64_t{high_rows} * (spec.head_dim / 2);
  const std::int64_t low = exact::kRopeLow * std::int64_t{spec.head_dim / 2};
  const backend::RopeTable rope{table, table + high, table + 2 * high, table + 2 * high + low};
  contents.embedding = tensors->matrix(spec.vocab, spec.dim, activation);
  contents.output = tensors->matrix(spec.vocab, spec.dim, activation);
  contents.output_norm = tensors->floats(spec.dim, 1.0F);
  for (std::int32_t i = 0; i < spec.layers; ++i) {
    contents.layers.push_back(random_layer(spec, activation, rope, *tensors));
  }
  const std::int64_t bytes = tensors->bytes();
  return ModelFile::make(std::move(contents), std::move(tensors), bytes);
}

}  // namespace fieldprint::weights
