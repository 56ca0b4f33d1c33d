#include "model/model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "backend/select.h"
#include "kv/backend_memory.h"
#include "sampler/sampler.h"
#include "weights/kv_scales.h"
#include "weights/tiny_file_testing.h"

namespace fieldprint::model {
namespace {

using weights::Architecture;
using weights::testing::TinyFile;
using weights::testing::TinyModel;

constexpr std::int32_t kMaxTokens = 512;
constexpr std::int64_t kBlocksEach = 8;

/// A history with its anchors and their bounds.
struct History {
  std::vector<std::int32_t> tokens;
  std::int32_t anchor_tokens = 0;
  float floor_odds = 0.0F;
  float ceiling_odds = std::numeric_limits<float>::infinity();
};

History history(std::size_t count, std::uint64_t seed, std::int32_t anchor_tokens = 0,
                float floor_odds = 0.0F) {
  weights::testing::Noise noise(seed);
  History out{{}, anchor_tokens, floor_odds};
  while (out.tokens.size() < count) out.tokens.push_back(static_cast<std::int32_t>(noise.next() % 32));
  return out;
}

/// What a forward pass leaves behind for one history.
struct Outcome {
  std::vector<std::uint32_t> logits;  ///< bits, of the last token
  std::vector<float> anchor_mass;     ///< of the last token
  std::vector<std::uint8_t> kv;
  bool operator==(const Outcome&) const = default;
};

/// The model on one backend, with blocks for several histories.
class Stepper {
 public:
  Stepper(const weights::ModelFile& file, const std::string& backend, std::size_t histories)
      : backend_(backend::select_backend(backend, 1).value()),
        model_(file, *backend_, kMaxTokens),
        geometry_{file.spec().layers, file.spec().kv_heads, file.spec().head_dim},
        pool_(geometry_, static_cast<std::int64_t>(histories) * kBlocksEach,
              kv::backend_memory(
                  *backend_, static_cast<std::int64_t>(histories) * kBlocksEach * geometry_.block_bytes()),
              7) {
    blocks_.resize(histories);
    for (auto& table : blocks_) {
      for (std::int64_t i = 0; i < kBlocksEach; ++i) table.push_back(pool_.acquire());
    }
  }

  /// Computes tokens [begins[i], ends[i]) of every history in one step; histories with none are left out.
  std::vector<bool> step(const std::vector<History>& histories, const std::vector<std::size_t>& begins,
                         const std::vector<std::size_t>& ends) {
    std::vector<SequenceSlice> slices;
    rows_.assign(histories.size(), -1);
    for (std::size_t i = 0; i < histories.size(); ++i) {
      if (begins[i] == ends[i]) continue;
      const History& of = histories[i];
      rows_[i] = static_cast<std::int32_t>(slices.size());
      slices.push_back({.tokens = std::span(of.tokens).subspan(begins[i], ends[i] - begins[i]),
                        .first_position = static_cast<std::int32_t>(begins[i]),
                        .anchor_tokens = of.anchor_tokens,
                        .blocks = blocks_[i].data(),
                        .floor_odds = of.floor_odds,
                        .ceiling_odds = of.ceiling_odds,
                        .logits = 1});
    }
    return model_.forward(slices, {pool_.base(), geometry_.block_bytes()});
  }

  /// Of a history that was in the last step.
  Outcome outcome(std::size_t index) {
    Outcome out;
    for (const float logit : model_.logits(rows_[index], 1))
      out.logits.push_back(std::bit_cast<std::uint32_t>(logit));
    out.anchor_mass = model_.anchor_mass(rows_[index]);
    for (const kv::BlockId block : blocks_[index]) {
      const std::size_t at = out.kv.size();
      out.kv.resize(at + static_cast<std::size_t>(geometry_.block_bytes()));
      backend_->download(out.kv.data() + at, pool_.data(block), geometry_.block_bytes());
    }
    return out;
  }

 private:
  std::unique_ptr<backend::Backend> backend_;
  Model model_;
  kv::KvGeometry geometry_;
  kv::BlockPool pool_;
  std::vector<std::vector<std::int32_t>> blocks_;
  std::vector<std::int32_t> rows_;  ///< logit row of each history in the last step
};

/// A history alone, `chunk` tokens a step, on the backend that defines the right answer.
Outcome alone(const weights::ModelFile& file, const History& of, std::size_t chunk) {
  Stepper run(file, "scalar", 1);
  for (std::size_t at = 0; at < of.tokens.size(); at += chunk) {
    run.step({of}, {at}, {std::min(at + chunk, of.tokens.size())});
  }
  return run.outcome(0);
}

/// A model on the default backend, with blocks for one short history.
struct OnePass {
  std::unique_ptr<backend::Backend> backend = backend::select_backend("", 2).value();
  Model model;
  kv::KvGeometry geometry;
  kv::BlockPool pool;

  explicit OnePass(const weights::ModelFile& file)
      : model(file, *backend, kMaxTokens),
        geometry{file.spec().layers, file.spec().kv_heads, file.spec().head_dim},
        pool(geometry, 2, kv::backend_memory(*backend, 2 * geometry.block_bytes())) {}

  /// Computes the history in one step with logits for its last `rows` tokens; whether all was finite.
  bool forward(const History& of, std::int32_t rows) {
    const std::vector<std::int32_t> blocks = {pool.acquire(), pool.acquire()};
    const std::vector<SequenceSlice> slices = {
        {.tokens = of.tokens, .blocks = blocks.data(), .ceiling_odds = of.ceiling_odds, .logits = rows}};
    return model.forward(slices, {pool.base(), geometry.block_bytes()})[0];
  }
};

class ModelOf : public ::testing::TestWithParam<Architecture> {
 protected:
  static const weights::ModelFile& file() {
    static const TinyFile llama(TinyModel{.architecture = Architecture::kLlama});
    static const TinyFile gemma(TinyModel{.architecture = Architecture::kGemma3});
    return GetParam() == Architecture::kLlama ? llama.file() : gemma.file();
  }
};

INSTANTIATE_TEST_SUITE_P(Architectures, ModelOf,
                         ::testing::Values(Architecture::kLlama, Architecture::kGemma3),
                         [](const auto& parameter) {
                           return parameter.param == Architecture::kLlama ? "Llama" : "Gemma3";
                         });

// 300 tokens are more than Gemma's window of 128.
TEST_P(ModelOf, PrefillEqualsDecode) {
  for (const History& of : {history(300, 1), history(200, 2, 70), history(200, 3, 64, 0.5F)}) {
    const Outcome decoded = alone(file(), of, 1);
    for (const std::size_t chunk : {7, 64, 100, 300}) EXPECT_EQ(alone(file(), of, chunk), decoded) << chunk;
    EXPECT_NE(decoded.logits, std::vector<std::uint32_t>(decoded.logits.size(), decoded.logits[0]));
  }
}

TEST_P(ModelOf, ARaggedBatchEqualsSingleSequencesOnEveryBackend) {
  const std::vector<History> histories = {history(150, 1), history(3, 2), history(140, 3, 70, 0.4F),
                                          history(66, 4, 1), history(129, 5, 64)};
  std::vector<Outcome> expected;
  for (const History& of : histories) expected.push_back(alone(file(), of, of.tokens.size()));
  for (const std::string& backend : backend::available_backends()) {
    Stepper run(file(), backend, histories.size());
    // Prefill all but the last token in chunks of other lengths for each, decode where a chunk is 1.
    const std::size_t chunks[] = {64, 1, 33, 8, 50};
    std::vector<std::size_t> done(histories.size(), 0);
    for (bool more = true; more;) {
      more = false;
      std::vector<std::size_t> ends = done;
      for (std::size_t i = 0; i < histories.size(); ++i) {
        ends[i] = std::min(done[i] + chunks[i], histories[i].tokens.size() - 1);
        more = more || ends[i] > done[i];
      }
      if (more) run.step(histories, done, ends);
      done = ends;
    }
    std::vector<std::size_t> ends;
    for (const History& of : histories) ends.push_back(of.tokens.size());
    EXPECT_EQ(run.step(histories, done, ends), std::vector<bool>(histories.size(), true));
    for (std::size_t i = 0; i < histories.size(); ++i) {
      EXPECT_EQ(run.outcome(i), expected[i]) << backend << ", history " << i;
    }
  }
}

TEST_P(ModelOf, AnchorsAndBoundsChangeTheResult) {
  const Outcome plain = alone(file(), history(140, 3), 140);
  const Outcome anchored = alone(file(), history(140, 3, 70), 140);
  const Outcome floored = alone(file(), history(140, 3, 70, 9.0F), 140);
  EXPECT_NE(floored.logits, anchored.logits);
  ASSERT_EQ(floored.anchor_mass.size(), static_cast<std::size_t>(file().spec().layers));
  for (std::size_t i = 0; i < floored.anchor_mass.size(); ++i) {
    EXPECT_GT(anchored.anchor_mass[i], 0.0F);
    EXPECT_LT(anchored.anchor_mass[i], 1.0F);
    EXPECT_EQ(plain.anchor_mass[i], 0.0F);
  }
}

TEST_P(ModelOf, LogitsOfSeveralRowsEqualThoseOfOneAtATime) {
  const History of = history(9, 6);
  OnePass pass(file());
  Model& model = pass.model;
  ASSERT_TRUE(pass.forward(of, 5));
  const std::span<const float> together = model.logits(0, 5);
  const std::vector<float> all(together.begin(), together.end());
  for (std::int32_t row = 0; row < 5; ++row) {
    const std::span<const float> one = model.logits(row, 1);
    EXPECT_TRUE(std::equal(one.begin(), one.end(), all.begin() + row * file().spec().vocab)) << row;
  }
}

TEST_P(ModelOf, TokensChosenAfterAStepAreThoseOfTheSampler) {
  const History of = history(9, 8);
  OnePass pass(file());
  Model& model = pass.model;
  ASSERT_TRUE(pass.forward(of, 6));
  const SamplingSettings settings{.temperature = 3.0F, .top_p = 0.9F, .repetition_penalty = 1.4F, .seed = 4};
  std::vector<sampler::SeenTokens> seen;
  std::vector<RowChoice> choices;
  seen.reserve(4);
  for (std::size_t tokens = 5; tokens < 9; ++tokens) {
    seen.emplace_back(file().spec().vocab).add(std::span(of.tokens).first(tokens));
    choices.push_back({sampler::choice_of(settings, tokens), seen.back().words()});
  }
  const std::vector<std::int32_t> chosen = model.choose(1, choices);
  for (std::int32_t row = 0; row < 4; ++row) {
    const sampler::LogitRow access{model.logits(1 + row, 1),
                                   [&](float scale) { return model.probabilities(0, scale); },
                                   [&](std::span<const float> other) { model.set_logits(0, other); }};
    const auto history = std::span(of.tokens).first(static_cast<std::size_t>(5 + row));
    EXPECT_EQ(chosen[static_cast<std::size_t>(row)], sampler::pick(access, settings, history, -1)->token);
  }
}

TEST_P(ModelOf, ScalesGivenWhileRowsAreShownAreThoseOfThePass) {
  const History of = history(70, 6);
  const auto backend = backend::select_backend("", 2).value();
  const weights::ModelSpec& spec = file().spec();
  const std::vector<float> unit =
      weights::kv_scale_section(weights::unit_kv_calibration(spec.kv_heads, spec.head_dim), spec.score_scale);
  const kv::KvGeometry geometry{spec.layers, spec.kv_heads, spec.head_dim};
  kv::BlockPool pool(geometry, 3, kv::backend_memory(*backend, 3 * geometry.block_bytes()));
  const std::vector<std::int32_t> blocks = {pool.acquire(), pool.acquire(), pool.acquire()};
  const auto logits = [&](Model& model) {
    const std::vector<SequenceSlice> slices = {
        {.tokens = of.tokens, .blocks = blocks.data(), .ceiling_odds = of.ceiling_odds, .logits = 1}};
    EXPECT_TRUE(model.forward(slices, {pool.base(), geometry.block_bytes()})[0]);
    const std::span<const float> row = model.logits(0, 1);
    return std::vector<float>(row.begin(), row.end());
  };
  Model before(file(), *backend, kMaxTokens);
  const std::vector<float> plain = logits(before);
  for (std::int32_t layer = 0; layer < spec.layers; ++layer) before.set_kv_scales(layer, unit);
  Model within(file(), *backend, kMaxTokens);
  std::vector<std::int32_t> seen;
  within.watch_qkv([&](std::int32_t layer, std::span<const float> qkv) {
    seen.push_back(layer);
    EXPECT_EQ(qkv.size(),
              of.tokens.size() * static_cast<std::size_t>((spec.heads + 2 * spec.kv_heads) * spec.head_dim));
    within.set_kv_scales(layer, unit);
  });
  const std::vector<float> changed = logits(within);
  EXPECT_EQ(changed, logits(before));
  EXPECT_NE(changed, plain);
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(spec.layers));
  within.watch_qkv({});
  EXPECT_EQ(logits(within), changed);
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(spec.layers));
}

weights::testing::Bytes bytes_of(const std::vector<float>& values) {
  weights::testing::Bytes out(values.size() * sizeof(float));
  std::memcpy(out.data(), values.data(), out.size());
  return out;
}

/// A tiny model whose first norm overflows in column 0, which the embedding of token 5 alone has.
weights::testing::GgufBuilder overflowing(Architecture architecture) {
  weights::testing::GgufBuilder builder = TinyModel{.architecture = architecture}.builder();
  constexpr std::size_t kVocab = 32;
  constexpr std::size_t kDim = TinyModel::kDim;
  weights::testing::Noise noise(3);
  std::vector<float> embedding(kVocab * kDim);
  for (std::size_t i = 0; i < embedding.size(); ++i) {
    const bool token_5 = i / kDim == 5;
    embedding[i] = i % kDim == 0 ? (token_5 ? 1.0F : 0.0F) : (token_5 ? 0.0F : noise.real());
  }
  std::vector<float> norm(kDim, 1.0F);
  norm[0] = 3e38F;
  builder.tensor("token_embd.weight", {kDim, kVocab}, 0, bytes_of(embedding));
  builder.tensor("blk.0.attn_norm.weight", {kDim}, 0, bytes_of(norm));
  return builder;
}

TEST_P(ModelOf, ActivationsThatAreNotFiniteAreNoticedInTheirSequenceAlone) {
  const TinyFile broken(overflowing(GetParam()));
  History bad = history(20, 1);
  History good = history(20, 2);
  std::replace(bad.tokens.begin(), bad.tokens.end(), 5, 6);
  std::replace(good.tokens.begin(), good.tokens.end(), 5, 6);
  bad.tokens[11] = 5;
  for (const std::string& backend : backend::available_backends()) {
    Stepper run(broken.file(), backend, 3);
    const std::vector<bool> finite = run.step({good, bad, good}, {0, 0, 0}, {20, 20, 20});
    EXPECT_EQ(finite, (std::vector<bool>{true, false, true})) << backend;
    EXPECT_EQ(run.outcome(0), run.outcome(2)) << backend;
  }
}

}  // namespace
}  // namespace fieldprint::model
