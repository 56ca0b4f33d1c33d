#include "backend/cuda/attention.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "backend/attention_testing.h"
#include "backend/cuda/attention_device_testing.h"
#include "backend/scalar/attention.h"

namespace fieldprint::backend::cuda {
namespace {

using backend::testing::HeadShape;
using backend::testing::PagedAttention;
using backend::testing::SequenceSpec;

class CudaAttention : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::has_device()) GTEST_SKIP() << "no CUDA device here";
  }
};

/// Number of floats with other bits; every NaN counts as the same.
std::int64_t differences(const std::vector<float>& expected, const std::vector<float>& actual,
                         const char* what) {
  EXPECT_EQ(expected.size(), actual.size());
  std::int64_t count = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(expected[i]) == std::bit_cast<std::uint32_t>(actual[i])) continue;
    if (std::isnan(expected[i]) && std::isnan(actual[i])) continue;
    if (count++ == 0) {
      ADD_FAILURE() << what << " differs first at " << i << " of " << expected.size() << ": expected "
                    << expected[i] << ", got " << actual[i];
    }
  }
  if (count > 0) ADD_FAILURE() << count << " of " << expected.size() << " differ";
  return count;
}

/// Compares with scalar for plans of whole rows, chunks and tiles.
void expect_scalar(const HeadShape& shape, std::int32_t window, const std::vector<SequenceSpec>& specs,
                   std::uint64_t seed) {
  SCOPED_TRACE(std::to_string(shape.heads) + " heads, " + std::to_string(shape.kv_heads) +
               " KV heads, size " + std::to_string(shape.head_dim) + ", window " + std::to_string(window) +
               ", seed " + std::to_string(seed));
  PagedAttention attention(shape, window, specs, seed, seed + 1);
  attention.write_future();
  attention.run(scalar::attention_preface, scalar::attention_context);
  for (const std::int32_t multiprocessors : {1, 6, 132}) {
    SCOPED_TRACE(std::to_string(multiprocessors) + " multiprocessors");
    const testing::AttentionResult result = testing::run_on_device(attention, multiprocessors);
    differences(attention.out(), result.out, "out");
    differences(attention.anchor_mass(), result.anchor_mass, "anchor mass");
  }
}

std::int32_t below(std::mt19937_64& random, std::int32_t limit) {
  return static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(limit));
}

HeadShape random_shape(std::mt19937_64& random) {
  constexpr std::int32_t kDims[] = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256};
  constexpr std::int32_t kGroups[] = {1, 2, 3, 4, 5, 7, 8, 9, 16};
  const std::int32_t kv_heads = 1 + below(random, 3);
  return {kv_heads * kGroups[below(random, 9)], kv_heads, kDims[below(random, 10)]};
}

std::vector<SequenceSpec> random_sequences(std::mt19937_64& random, bool prefill) {
  constexpr std::int32_t kAnchors[] = {0, 1, 63, 64, 65, 128, 200, 1024};
  std::vector<SequenceSpec> specs;
  const std::int32_t count = 1 + below(random, 5);
  for (std::int32_t s = 0; s < count; ++s) {
    SequenceSpec spec{};
    spec.owner = static_cast<std::uint64_t>(10 + s);
    if (s > 0 && below(random, 3) > 0) {
      spec.anchor_set = specs.back().anchor_set;
      spec.anchor_tokens = specs.back().anchor_tokens;
    } else {
      spec.anchor_set = static_cast<std::uint64_t>(100 + s);
      spec.anchor_tokens = kAnchors[below(random, 7 + (below(random, 8) == 0 ? 1 : 0))];
    }
    const std::int32_t start[] = {0, below(random, 1 + spec.anchor_tokens), 1 + spec.anchor_tokens,
                                  spec.anchor_tokens + below(random, 1200)};
    spec.first_position = start[below(random, 4)];
    spec.queries = prefill && below(random, 2) == 0 ? 1 + below(random, 150) : 1 + below(random, 2);
    constexpr float kOdds[] = {0.0F, 0.01F, 1.0F, 9.0F};
    spec.floor_odds = kOdds[below(random, 4)];
    if (below(random, 2) == 0) spec.ceiling_odds = spec.floor_odds + kOdds[below(random, 4)];
    specs.push_back(spec);
  }
  return specs;
}

TEST_F(CudaAttention, EqualsScalarOnRaggedBatches) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 100; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const HeadShape shape = random_shape(random);
    constexpr std::int32_t kWindows[] = {0, 0, 1, 17, 64, 100, 513};
    const std::int32_t window = kWindows[below(random, 7)];
    expect_scalar(shape, window, random_sequences(random, shape.heads <= 9), random());
  }
}

TEST_F(CudaAttention, EqualsScalarForEveryGroupAndSize) {
  for (std::int32_t group = 1; group <= 16; ++group) {
    for (const std::int32_t dim : {32, 64, 80, 96, 128, 256}) {
      expect_scalar({2 * group, 2, dim}, 0,
                    {{.owner = 1, .anchor_set = 2, .anchor_tokens = 70, .first_position = 700, .queries = 1},
                     {.owner = 2, .anchor_set = 2, .anchor_tokens = 70, .first_position = 75, .queries = 3}},
                    static_cast<std::uint64_t>(group * 1000 + dim));
    }
  }
}

TEST_F(CudaAttention, EqualsScalarAcrossChunksAndTiles) {
  for (const HeadShape shape :
       {HeadShape{3, 1, 64}, HeadShape{4, 1, 256}, HeadShape{2, 2, 128}, HeadShape{12, 1, 80}}) {
    for (const std::int32_t window : {0, 2500}) {
      expect_scalar(
          shape, window,
          {{.owner = 1,
            .anchor_set = 2,
            .anchor_tokens = 70,
            .first_position = 71 + 4096 - 20,
            .queries = 40},
           {.owner = 3, .anchor_set = 2, .anchor_tokens = 70, .first_position = 9000, .queries = 1}},
          5);
    }
  }
}

/// A first token sees the sink alone, and there is nothing to wait for but the kernel before.
TEST_F(CudaAttention, EqualsScalarOnPromptsOfOneToken) {
  for (const HeadShape shape : {HeadShape{8, 2, 128}, HeadShape{3, 1, 64}, HeadShape{4, 1, 256}}) {
    for (const std::int32_t anchors : {0, 70}) {
      for (std::int32_t position = 0; position < 3; ++position) {
        const SequenceSpec token{
            .owner = 1, .anchor_set = 2, .anchor_tokens = anchors, .first_position = position, .queries = 1};
        SequenceSpec other = token;
        other.owner = 3;
        const auto seed = static_cast<std::uint64_t>(100 * anchors + position);
        expect_scalar(shape, 0, {token}, seed);
        expect_scalar(shape, 1, {token, other}, seed);
        other.first_position = 500;
        expect_scalar(shape, 0, {token, other}, seed);
        other.queries = 100;
        expect_scalar(shape, 0, {token, other}, seed);
      }
    }
  }
}

TEST_F(CudaAttention, EqualsScalarWhereItemsMakeAllResults) {
  for (const HeadShape shape : {HeadShape{8, 2, 128}, HeadShape{3, 1, 64}, HeadShape{4, 1, 256}}) {
    for (const std::int32_t window : {0, 100}) {
      std::vector<SequenceSpec> specs;
      for (std::int32_t s = 0; s < 30; ++s) {
        specs.push_back({.owner = static_cast<std::uint64_t>(10 + s),
                         .anchor_set = static_cast<std::uint64_t>(100 + s),
                         .anchor_tokens = 0,
                         .first_position = 1 + 29 * s,
                         .queries = s % 7 == 3 ? 150 : 1});
      }
      expect_scalar(shape, window, specs, 11);
      expect_scalar(shape, window, {specs.begin(), specs.begin() + 3}, 12);
    }
  }
}

TEST_F(CudaAttention, EqualsScalarWhereTheWarpsOfABlockShareRows) {
  for (const HeadShape shape : {HeadShape{4, 1, 128}, HeadShape{2, 2, 64}, HeadShape{4, 1, 256}}) {
    for (const std::int32_t window : {0, 4500}) {
      std::vector<SequenceSpec> specs;
      for (std::int32_t s = 0; s < 3; ++s) {
        specs.push_back({.owner = static_cast<std::uint64_t>(10 + s),
                         .anchor_set = static_cast<std::uint64_t>(100 + s),
                         .anchor_tokens = s == 2 ? 70 : 0,
                         .first_position = 3000 + 2900 * s,
                         .queries = 1 + s % 2});
      }
      expect_scalar(shape, window, specs, 13);
    }
  }
}

TEST_F(CudaAttention, EqualsScalarOnABatchWithSharedAnchors) {
  for (const std::int32_t anchors : {0, 128, 200}) {
    std::vector<SequenceSpec> specs;
    for (std::int32_t s = 0; s < 40; ++s) {
      specs.push_back({.owner = static_cast<std::uint64_t>(10 + s),
                       .anchor_set = s < 30 ? 1U : 2U,
                       .anchor_tokens = s < 30 ? anchors : 64,
                       .first_position = 210 + 37 * s,
                       .queries = s % 11 == 3 ? 20 : 1,
                       .floor_odds = s % 3 == 0 ? 1.0F : 0.0F});
    }
    expect_scalar({8, 2, 128}, 0, specs, static_cast<std::uint64_t>(anchors));
  }
}

TEST_F(CudaAttention, EqualsScalarOnALongPrefill) {
  for (const HeadShape shape : {HeadShape{8, 2, 128}, HeadShape{3, 1, 64}, HeadShape{4, 1, 256}}) {
    for (const std::int32_t window : {0, 300}) {
      expect_scalar(
          shape, window,
          {{.owner = 1, .anchor_set = 2, .anchor_tokens = 100, .first_position = 0, .queries = 900},
           {.owner = 5, .anchor_set = 6, .anchor_tokens = 0, .first_position = 777, .queries = 333}},
          9);
    }
  }
}

}  // namespace
}  // namespace fieldprint::backend::cuda
