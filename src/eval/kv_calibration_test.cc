#include "eval/kv_calibration.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "eval/tiny_model_testing.h"
#include "weights/rope_table.h"

namespace fieldprint::eval {
namespace {

constexpr std::int32_t kContext = 600;
constexpr std::int32_t kDim = 32;
constexpr std::int32_t kHeads = 2;
constexpr std::int32_t kKvHeads = 2;
constexpr std::size_t kStride = (kHeads + 2 * kKvHeads) * kDim;

/// Rotary tables of a base at which the last pairs turn slowly, and rows of noise with a constant part.
struct Layer {
  Layer() {
    spec.heads = kHeads;
    spec.kv_heads = kKvHeads;
    spec.head_dim = kDim;
    spec.context = kContext;
    spec.norm_epsilon = 1e-5F;
    const std::int64_t high = std::int64_t{kRows} * kDim / 2;
    const std::int64_t low = std::int64_t{256} * kDim / 2;
    weights.rope = {table.data(), table.data() + high, table.data() + 2 * high,
                    table.data() + 2 * high + low};
    weights::testing::Noise noise(11);
    for (std::size_t t = 0; t < positions.size(); ++t) {
      positions[t] = static_cast<std::int32_t>(t) % 50;  // two sequences
      for (std::size_t i = 0; i < kStride; ++i) qkv.push_back(noise.real() + (i % 7 == 0 ? 3.0F : 0.0F));
    }
  }
  weights::KvCalibration measured() const {
    return measure_layer(spec, weights, ContextTurns(weights.rope, kContext, kDim), {qkv, positions});
  }
  float* key(std::size_t token, std::size_t head) { return &qkv[token * kStride + (kHeads + head) * kDim]; }
  float* value(std::size_t token, std::size_t head) {
    return &qkv[token * kStride + (kHeads + kKvHeads + head) * kDim];
  }

  static constexpr std::int32_t kRows = 3;
  weights::ModelSpec spec;
  weights::LayerWeights weights;
  std::vector<float> table = weights::rope_table(weights::rope_frequencies(1e5, kDim), kRows);
  std::vector<std::int32_t> positions = std::vector<std::int32_t>(100);
  std::vector<float> qkv;
};

/// Largest |turned key − offset| / scale over tokens and positions of the context, by channel of KV head 1.
std::vector<double> levels_reached(Layer& layer, const weights::KvCalibration& scales) {
  const std::vector<double> frequencies = weights::rope_frequencies(1e5, kDim);
  std::vector<double> levels(kDim, 0.0);
  for (std::size_t t = 0; t < layer.positions.size(); ++t) {
    if (layer.positions[t] == 0) continue;
    const float* key = layer.key(t, 1);
    for (std::int32_t p = 1; p < kContext; ++p) {
      for (std::size_t i = 0; i < kDim / 2; ++i) {
        const auto turn = weights::cos_sin(p * frequencies[i]);
        const auto a = static_cast<double>(key[i]);
        const auto b = static_cast<double>(key[i + kDim / 2]);
        const double x[] = {a * turn.cos - b * turn.sin, b * turn.cos + a * turn.sin};
        for (std::size_t j = 0; j < 2; ++j) {
          const std::size_t d = i + j * kDim / 2;
          const double off = x[j] - static_cast<double>(scales.k_offset[kDim + d]);
          levels[d] = std::max(levels[d], std::abs(off) / static_cast<double>(scales.k_scale[kDim + d]));
        }
      }
    }
  }
  return levels;
}

TEST(KvCalibration, KeyScalesHoldTheTokensSeenAtEveryPositionOfTheContext) {
  Layer layer;
  const std::vector<double> levels = levels_reached(layer, layer.measured());
  for (const double level : levels) {
    EXPECT_LE(level, 127.0 / 1.49);
    // Offsets of pairs that go round a few times are added to their amplitude: a little more than needed.
    EXPECT_GE(level, 127.0 / 1.5 * 0.7);
  }
}

TEST(KvCalibration, OffsetsAreTheConstantPartOfWhatTurnsSlowly) {
  Layer layer;
  const weights::KvCalibration scales = layer.measured();
  // Channel 14 of the first key, 78 of its row, has no constant part; 20 (84) has; pair 0 turns fast.
  EXPECT_NEAR(scales.k_offset[14], 0.0, 0.4);
  EXPECT_NEAR(scales.k_offset[13], 3.0, 0.4);
  EXPECT_NEAR(scales.k_offset[0], 0.0, 0.05);
}

TEST(KvCalibration, ValueScalesHoldTheLargestOfEachChannelAndAShareOfTheHeads) {
  Layer layer;
  for (std::size_t t = 1; t < 50; ++t) std::fill_n(layer.value(t, 0), kDim, 0.5F);
  for (std::size_t t = 51; t < 100; ++t) std::fill_n(layer.value(t, 0), kDim, -0.25F);
  layer.value(70, 0)[9] = -2.0F;
  for (std::size_t t = 1; t < 100; ++t) layer.value(t, 0)[10] = 0.01F;
  const weights::KvCalibration scales = layer.measured();
  EXPECT_FLOAT_EQ(scales.v_scale[8], 0.5F * 1.5F / 127);
  EXPECT_FLOAT_EQ(scales.v_scale[9], 2.0F * 1.5F / 127);
  EXPECT_FLOAT_EQ(scales.v_scale[10], 2.0F / 8 * 1.5F / 127);
}

TEST(KvCalibration, TheSinkIsHeldByFactorsAndChangesNoScale) {
  Layer layer;
  const weights::KvCalibration before = layer.measured();
  layer.key(50, 1)[3] = 500.0F;
  layer.value(0, 1)[5] = -300.0F;
  const weights::KvCalibration after = layer.measured();
  EXPECT_EQ(after.k_offset, before.k_offset);
  EXPECT_EQ(after.k_scale, before.k_scale);
  EXPECT_EQ(after.v_scale, before.v_scale);
  EXPECT_EQ(after.sink_factor[0], before.sink_factor[0]);
  EXPECT_FLOAT_EQ(after.sink_factor[2] * 127 * after.k_scale[kDim + 3],
                  (500.0F - after.k_offset[kDim + 3]) * 1.25F);
  EXPECT_FLOAT_EQ(after.sink_factor[3] * 127 * after.v_scale[kDim + 5], 300.0F * 1.25F);
}

TEST(KvCalibration, ChannelsThatAreAlwaysZeroAndValuesThatAreNotFiniteGetUsableScales) {
  Layer layer;
  for (std::size_t t = 0; t < layer.positions.size(); ++t) {
    std::fill_n(layer.key(t, 0), kDim, 0.0F);
    layer.value(t, 0)[4] = 0.0F;
    layer.value(t, 1)[4] = INFINITY;
    layer.key(t, 1)[4] = NAN;
  }
  const weights::KvCalibration scales = layer.measured();
  for (const auto* all : {&scales.k_scale, &scales.v_scale, &scales.sink_factor}) {
    for (const float scale : *all) {
      EXPECT_GE(scale, 0x1p-40F);
      EXPECT_LE(scale, 0x1p40F);
    }
  }
  EXPECT_LT(scales.v_scale[4], scales.v_scale[5] / 100);
  for (const float offset : scales.k_offset) EXPECT_TRUE(std::isfinite(offset));
}

TEST(KvCalibration, EveryBackendAndThreadCountMeasuresTheSame) {
  for (const auto architecture : {weights::Architecture::kLlama, weights::Architecture::kGemma3}) {
    const testing::TinyFolder folder(weights::testing::TinyModel{.architecture = architecture}.builder());
    const Digest expected = folder.import().value()->digest();
    for (const std::string& name : backend::available_backends()) {
      const auto backend = backend::select_backend(name, 2).value();
      const auto file = weights::import_gguf(
          folder.gguf(), folder.model_path(),
          [&](const weights::ModelFile& draft) { return calibrate(draft, *backend); }, nullptr);
      ASSERT_TRUE(file.ok()) << file.error().message;
      EXPECT_EQ((*file)->digest(), expected) << name;
    }
  }
}

}  // namespace
}  // namespace fieldprint::eval
