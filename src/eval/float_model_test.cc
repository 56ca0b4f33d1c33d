#include "eval/float_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "eval/tiny_model_testing.h"
#include "eval/window_runner.h"

namespace fieldprint::eval {
namespace {

using testing::TinyImport;
using weights::Architecture;
using weights::testing::TinyModel;

std::vector<std::int32_t> some_tokens(std::int32_t count, std::int32_t vocab) {
  weights::testing::Noise noise(5);
  std::vector<std::int32_t> tokens;
  tokens.reserve(static_cast<std::size_t>(count));
  for (std::int32_t i = 0; i < count; ++i) {
    tokens.push_back(static_cast<std::int32_t>(noise.next() % static_cast<std::uint32_t>(vocab)));
  }
  return tokens;
}

/// |a − b| / |b|, Euclidean.
double relative_distance(std::span<const float> a, std::span<const float> b) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return std::sqrt(difference / norm);
}

/// The median over positions of the distance between canonical and float32 logits.
double median_distance(const TinyImport& tiny, std::int32_t count) {
  const std::vector<std::int32_t> tokens = some_tokens(count, tiny.file().spec().vocab);
  const auto reference = tiny.float_model();
  reference->forward(tokens);
  WindowRunner canonical(tiny.file(), tiny.backend(), count);
  EXPECT_TRUE(canonical.forward(tokens, count).ok());
  std::vector<double> distances;
  distances.reserve(static_cast<std::size_t>(count));
  for (std::int32_t t = 0; t < count; ++t) {
    distances.push_back(relative_distance(canonical.model().logits(t, 1), reference->logits(t, 1)));
  }
  std::sort(distances.begin(), distances.end());
  return distances[distances.size() / 2];
}

// Weights without a common mean, so that no direction drowns the others, and large values, so that attention
// counts.
constexpr weights::TensorType kBalanced = weights::TensorType::kQ4_0;
constexpr weights::TensorType kLarge = weights::TensorType::kQ8_0;

// The bounds stand between what quantisation does to these random weights (0.009, 0.008, 0.005) and what the
// smallest of these mistakes does: turning the wrong way, a wrong score scale, no window (0.028, 0.0097,
// 0.0098).
TEST(FloatModel, IsNearTheCanonicalLlama) {
  const TinyImport tiny({.attention = kBalanced, .value = kLarge});
  EXPECT_LT(median_distance(tiny, 300), 0.018);
}

TEST(FloatModel, IsNearTheCanonicalLlamaWithAnOutputOfItsOwn) {
  const TinyImport tiny({.attention = kBalanced, .value = kBalanced, .untied = true});
  EXPECT_LT(median_distance(tiny, 300), 0.0095);
}

TEST(FloatModel, IsNearTheCanonicalGemmaBeyondTheSlidingWindow) {
  const TinyImport tiny({.architecture = Architecture::kGemma3, .attention = kBalanced, .value = kLarge});
  EXPECT_LT(median_distance(tiny, 300), 0.0075);
}

TEST(FloatModel, SeesAsManyPositionsAsTheWindowHas) {
  auto builder = TinyModel{.architecture = Architecture::kGemma3, .value = kLarge}.builder();
  builder.set_u32("gemma3.block_count", 1);
  for (int layer = 1; layer < 7; ++layer) {
    for (const char* part :
         {"attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up",
          "ffn_down", "attn_q_norm", "attn_k_norm", "post_attention_norm", "post_ffw_norm"}) {
      builder.remove_tensor("blk." + std::to_string(layer) + "." + part + ".weight");
    }
  }
  const TinyImport tiny(builder);
  ASSERT_EQ(tiny.file().spec().window, 128);
  const auto model = tiny.float_model();
  std::vector<std::int32_t> tokens = some_tokens(130, tiny.file().spec().vocab);
  model->forward(tokens);
  const auto before = model->logits(127, 2);
  const std::vector<float> kept(before.begin(), before.end());
  tokens[0] = tokens[0] == 5 ? 6 : 5;
  model->forward(tokens);
  const auto after = model->logits(127, 2);
  const std::size_t vocab = kept.size() / 2;
  EXPECT_GT(relative_distance(after.first(vocab), std::span(kept).first(vocab)), 1e-4);
  EXPECT_LT(relative_distance(after.last(vocab), std::span(kept).last(vocab)), 1e-5);
}

TEST(FloatModel, ReadsGgufAndModelFileAlike) {
  const TinyImport tiny({.attention = kBalanced, .value = kLarge});
  const std::vector<std::int32_t> tokens = some_tokens(50, tiny.file().spec().vocab);
  const auto original = tiny.float_model();
  FloatModel imported(weights::FloatSource::open(tiny.model_path()).value(), 1);
  original->forward(tokens);
  imported.forward(tokens);
  EXPECT_LT(relative_distance(imported.logits(0, 50), original->logits(0, 50)), 0.02);
}

TEST(FloatModel, PredictsFromThePastAlone) {
  const TinyImport tiny({.architecture = Architecture::kGemma3});
  const auto model = tiny.float_model();
  std::vector<std::int32_t> tokens = some_tokens(200, tiny.file().spec().vocab);
  model->forward(tokens);
  const auto before = model->logits(0, 150);
  const std::vector<float> kept(before.begin(), before.end());
  for (std::size_t i = 150; i < tokens.size(); ++i) tokens[i] = (tokens[i] + 1) % tiny.file().spec().vocab;
  model->forward(tokens);
  EXPECT_LT(relative_distance(model->logits(0, 150), kept), 1e-5);
  model->forward(std::span(tokens).first(150));
  EXPECT_LT(relative_distance(model->logits(0, 150), kept), 1e-5);
}

TEST(FloatModel, GivesTheSameOnOneThreadAndTwo) {
  const TinyImport tiny(TinyModel{});
  const std::vector<std::int32_t> tokens = some_tokens(130, tiny.file().spec().vocab);
  FloatModel one(weights::FloatSource::open(tiny.gguf()).value(), 1);
  const auto two = tiny.float_model();
  one.forward(tokens);
  two->forward(tokens);
  EXPECT_LT(relative_distance(one.logits(100, 30), two->logits(100, 30)), 1e-5);
}

}  // namespace
}  // namespace fieldprint::eval
