#include "backend/avx2/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "backend/attention_oracle_testing.h"
#include "backend/attention_testing.h"
#include "backend/avx512/attention.h"
#include "backend/kernel_testing.h"
#include "backend/scalar/attention.h"

namespace fieldprint::backend {
namespace {

using testing::below;
using testing::HeadShape;
using testing::key_of_score;
using testing::kScoreQuery;
using testing::kSmallDim;
using testing::Oracle;
using testing::PagedAttention;
using testing::random_sequences;
using testing::random_shape;
using testing::random_value;
using testing::SequenceSpec;
using testing::tile_state;

struct Kernel {
  const char* name;
  bool (*runs_here)();
  void (*preface)(const AttentionArgs&, std::int64_t, std::int64_t);
  void (*context)(const AttentionArgs&, std::int64_t, std::int64_t);
};

const Kernel kScalar = {"scalar", [] { return true; }, scalar::attention_preface, scalar::attention_context};
const Kernel kAvx2 = {"avx2", testing::cpu_has_avx2, avx2::attention_preface, avx2::attention_context};
const Kernel kAvx512 = {"avx512", testing::cpu_has_avx512, avx512::attention_preface,
                        avx512::attention_context};

std::string name_of(const ::testing::TestParamInfo<Kernel>& info) { return info.param.name; }

class AttentionTest : public ::testing::TestWithParam<Kernel> {
 protected:
  void SetUp() override {
    if (!GetParam().runs_here()) GTEST_SKIP() << "this CPU lacks " << GetParam().name;
  }
};
class AttentionDifferential : public AttentionTest {};
INSTANTIATE_TEST_SUITE_P(Kernels, AttentionTest, ::testing::Values(kScalar, kAvx2, kAvx512), name_of);
INSTANTIATE_TEST_SUITE_P(Kernels, AttentionDifferential, ::testing::Values(kAvx2, kAvx512), name_of);

void run(PagedAttention& attention, const Kernel& kernel) { attention.run(kernel.preface, kernel.context); }

/// Index of the first float with other bits, or -1.
std::int64_t first_difference(const float* a, const float* b, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) {
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i]))
      return static_cast<std::int64_t>(i);
  }
  return -1;
}

void expect_same(const std::vector<float>& a, const std::vector<float>& b, const char* what) {
  ASSERT_EQ(a.size(), b.size());
  const std::int64_t i = first_difference(a.data(), b.data(), a.size());
  if (i < 0) return;
  const std::size_t at = static_cast<std::size_t>(i);
  ADD_FAILURE() << what << " differs at " << i << ": " << a[at] << " and " << b[at];
}

void expect_same_results(const PagedAttention& a, const PagedAttention& b) {
  expect_same(a.states(), b.states(), "states");
  expect_same(a.out(), b.out(), "out");
  expect_same(a.anchor_mass(), b.anchor_mass(), "anchor mass");
}

TEST_P(AttentionDifferential, EqualsScalarOnRaggedBatches) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 120; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const HeadShape shape = random_shape(random);
    constexpr std::int32_t kWindows[] = {0, 0, 1, 17, 64, 100, 128, 200, 513};
    const std::int32_t window = kWindows[below(random, 9)];
    const auto specs = random_sequences(random, shape.heads <= 9);
    const std::uint64_t seed = random();
    PagedAttention expected(shape, window, specs, seed, random());
    PagedAttention actual(shape, window, specs, seed, random());
    actual.cut(1 + below(random, 64));
    run(expected, kScalar);
    run(actual, GetParam());
    expect_same_results(expected, actual);
    if (HasFailure()) {
      FAIL() << shape.heads << " heads, " << shape.kv_heads << " KV heads, size " << shape.head_dim
             << ", window " << window;
    }
  }
}

/// Tiles of which little or all is seen, last tiles of one page, windows that open in either page of a tile.
TEST_P(AttentionDifferential, EqualsScalarAtTheEdgesOfTiles) {
  const HeadShape shape{3, 1, 32};
  for (const std::int32_t anchors : {0, 64, 128, 130}) {
    for (const std::int32_t window : {0, 1, 40, 64, 65, 100, 128, 192, 512}) {
      std::vector<SequenceSpec> specs;
      for (const std::int32_t seen : {1, 2, 63, 64, 65, 127, 128, 129, 191, 193, 256, 511, 512, 513, 640}) {
        const std::uint64_t owner = 10 + static_cast<std::uint64_t>(seen);
        specs.push_back({.owner = owner,
                         .anchor_set = 2,
                         .anchor_tokens = anchors,
                         .first_position = anchors + seen,
                         .queries = 2});
      }
      PagedAttention expected(shape, window, specs, 71, 72);
      PagedAttention actual(shape, window, specs, 71, 73);
      run(expected, kScalar);
      run(actual, GetParam());
      expect_same_results(expected, actual);
      if (HasFailure()) FAIL() << anchors << " anchors, window " << window;
    }
  }
}

TEST_P(AttentionDifferential, EqualsScalarAcrossChunks) {
  for (const HeadShape shape : {HeadShape{3, 1, 64}, HeadShape{4, 1, 256}, HeadShape{2, 2, 128}}) {
    for (const std::int32_t window : {0, 2500}) {
      const std::vector<SequenceSpec> specs = {
          {.owner = 1, .anchor_set = 2, .anchor_tokens = 70, .first_position = 71 + 4096 - 20, .queries = 40},
          {.owner = 3, .anchor_set = 2, .anchor_tokens = 70, .first_position = 5000, .queries = 1}};
      PagedAttention expected(shape, window, specs, 5, 6);
      PagedAttention actual(shape, window, specs, 5, 6);
      run(expected, kScalar);
      run(actual, GetParam());
      expect_same_results(expected, actual);
    }
  }
}

/// Everything that a sequence's rows computed, for one query.
std::vector<float> rows_of(const PagedAttention& attention, std::int64_t query, const HeadShape& shape) {
  const auto slice = [&](const std::vector<float>& x) {
    const std::int64_t size = static_cast<std::int64_t>(x.size()) / attention.sequence(0).queries;
    return std::vector<float>(x.begin() + query * size, x.begin() + (query + 1) * size);
  };
  std::vector<float> rows = slice(attention.out());
  for (const float mass : slice(attention.anchor_mass())) rows.push_back(mass);
  EXPECT_EQ(rows.size(), static_cast<std::size_t>(shape.heads * (shape.head_dim + 1)));
  return rows;
}

TEST_P(AttentionTest, PrefillEqualsDecodeStepByStep) {
  const HeadShape shape{6, 2, 64};
  for (const std::int32_t window : {0, 130}) {
    for (const std::int32_t anchors : {0, 100}) {
      const SequenceSpec spec{.owner = 1,
                              .anchor_set = 2,
                              .anchor_tokens = anchors,
                              .first_position = 0,
                              .queries = 700,
                              .floor_odds = 0.3F,
                              .ceiling_odds = 0.5F};
      PagedAttention prefill(shape, window, {spec}, 7, 8);
      run(prefill, GetParam());
      for (std::int32_t p = 0; p < spec.queries; p += p < 140 ? 1 : 37) {
        SequenceSpec step = spec;
        step.first_position = p;
        step.queries = 1;
        PagedAttention decode(shape, window, {step}, 7, static_cast<std::uint64_t>(p));
        run(decode, GetParam());
        expect_same(rows_of(decode, 0, shape), rows_of(prefill, p, shape), "decode");
      }
    }
  }
}

TEST_P(AttentionTest, ItemsAndPagesMayLieAnywhere) {
  const HeadShape shape{8, 2, 96};
  const std::vector<SequenceSpec> specs = {
      {.owner = 1, .anchor_set = 9, .anchor_tokens = 80, .first_position = 60, .queries = 70},
      {.owner = 2, .anchor_set = 9, .anchor_tokens = 80, .first_position = 300, .queries = 5},
      {.owner = 3, .anchor_set = 4, .anchor_tokens = 0, .first_position = 0, .queries = 33}};
  PagedAttention expected(shape, 0, specs, 11, 12);
  run(expected, GetParam());
  for (const std::int32_t queries : {1, 2, 7, 64}) {
    PagedAttention actual(shape, 0, specs, 11, 100 + static_cast<std::uint64_t>(queries));
    actual.cut(queries);
    run(actual, GetParam());
    expect_same_results(expected, actual);
  }
}

TEST_P(AttentionTest, SharingBlocksChangesNothing) {
  const HeadShape shape{4, 2, 64};
  SequenceSpec first{.owner = 1, .anchor_set = 9, .anchor_tokens = 130, .first_position = 400, .queries = 3};
  SequenceSpec second{.owner = 2, .anchor_set = 9, .anchor_tokens = 130, .first_position = 177, .queries = 2};
  PagedAttention together(shape, 0, {first, second}, 21, 22);
  run(together, GetParam());
  PagedAttention alone(shape, 0, {second}, 21, 23);
  run(alone, GetParam());
  const std::vector<float> tail(together.out().end() - static_cast<std::ptrdiff_t>(alone.out().size()),
                                together.out().end());
  expect_same(tail, alone.out(), "out");
}

TEST_P(AttentionTest, TokensPastTheQueryDoNotCount) {
  const HeadShape shape{4, 2, 80};
  const std::vector<SequenceSpec> specs = {
      {.owner = 1, .anchor_set = 2, .anchor_tokens = 10, .first_position = 500, .queries = 4}};
  PagedAttention unwritten(shape, 0, specs, 31, 32);
  PagedAttention written(shape, 0, specs, 31, 32);
  written.write_future();
  run(unwritten, GetParam());
  run(written, GetParam());
  expect_same_results(unwritten, written);
}

TEST_P(AttentionTest, FloorAndCeilingHoldTheAnchorsShare) {
  const HeadShape shape{4, 2, 64};
  for (const float share : {0.05F, 0.3F, 0.75F}) {
    const float odds = share / (1.0F - share);
    SequenceSpec spec{.owner = 1, .anchor_set = 2, .anchor_tokens = 40, .first_position = 600, .queries = 20};
    PagedAttention free(shape, 0, {spec}, 41, 42);
    spec.floor_odds = odds;
    PagedAttention floored(shape, 0, {spec}, 41, 42);
    spec.floor_odds = 0.0F;
    spec.ceiling_odds = odds;
    PagedAttention capped(shape, 0, {spec}, 41, 42);
    run(free, GetParam());
    run(floored, GetParam());
    run(capped, GetParam());
    int raised = 0;
    int lowered = 0;
    for (std::size_t i = 0; i < free.anchor_mass().size(); ++i) {
      const float natural = free.anchor_mass()[i];
      EXPECT_GE(floored.anchor_mass()[i], share * (1.0F - 0x1p-21F));
      EXPECT_LE(capped.anchor_mass()[i], share * (1.0F + 0x1p-21F));
      if (natural > share * 1.001F) {
        EXPECT_EQ(floored.anchor_mass()[i], natural);
        ++lowered;
      }
      if (natural < share * 0.999F) {
        EXPECT_EQ(capped.anchor_mass()[i], natural);
        ++raised;
      }
    }
    EXPECT_GT(raised + lowered, 70);
  }
}

TEST_P(AttentionTest, NoAnchorsHaveNoMassWhateverTheFloor) {
  const SequenceSpec spec{.owner = 1,
                          .anchor_set = 2,
                          .anchor_tokens = 0,
                          .first_position = 0,
                          .queries = 100,
                          .floor_odds = 1.0F};
  PagedAttention attention({4, 2, 64}, 0, {spec}, 51, 52);
  run(attention, GetParam());
  for (const float mass : attention.anchor_mass()) EXPECT_EQ(mass, 0.0F);
}

/// Softmax attention in binary64 over the dequantised history.
std::vector<double> reference_row(PagedAttention& attention, const HeadShape& shape, std::int64_t query,
                                  std::int64_t head) {
  const AttentionArgs args = attention.args();
  const std::int64_t dim = shape.head_dim;
  const std::int64_t kv_head = head / (shape.heads / shape.kv_heads);
  const std::int64_t position = attention.specs()[0].first_position + query;
  const std::int64_t row = query * shape.heads + head;
  const float* sink = args.scales.sink + 4 * kv_head;
  std::vector<double> weighted(static_cast<std::size_t>(dim));
  double denominator = 0.0;
  for (std::int64_t p = 0; p <= position; ++p) {
    std::int64_t slot = 0;
    const std::uint8_t* page = attention.page(0, p, kv_head, &slot);
    const auto byte = [&](std::int64_t i) { return static_cast<double>(static_cast<std::int8_t>(page[i])); };
    double dot = 0.0;
    for (std::int64_t d = 0; d < dim; ++d) dot += args.q[row * dim + d] * byte(slot * dim + d);
    const double key_scale = p == 0 ? static_cast<double>(sink[kSinkKeyScale]) : 1.0;
    const double value_scale = p == 0 ? static_cast<double>(sink[kSinkValueScale]) : 1.0;
    const double weight = std::exp2(dot * args.q_step[row] * 0x1p-22 * key_scale);
    denominator += weight;
    for (std::int64_t d = 0; d < dim; ++d) {
      const std::int64_t column = exact::value_slot(static_cast<std::int32_t>(slot));
      const double scale = static_cast<double>(args.scales.v_scale[kv_head * dim + d]) * value_scale;
      weighted[static_cast<std::size_t>(d)] += weight * scale * byte((dim + d) * exact::kPageTokens + column);
    }
  }
  for (double& value : weighted) value /= denominator;
  return weighted;
}

TEST_P(AttentionTest, IsCloseToSoftmaxInBinary64) {
  const HeadShape shape{4, 2, 64};
  const SequenceSpec spec{
      .owner = 1, .anchor_set = 2, .anchor_tokens = 70, .first_position = 2300, .queries = 3};
  PagedAttention attention(shape, 0, {spec}, 61, 62, false);
  run(attention, GetParam());
  double error = 0.0;
  double norm = 0.0;
  for (std::int64_t query = 0; query < spec.queries; ++query) {
    for (std::int64_t head = 0; head < shape.heads; ++head) {
      const std::vector<double> expected = reference_row(attention, shape, query, head);
      const float* out = attention.out().data() + (query * shape.heads + head) * shape.head_dim;
      for (std::size_t d = 0; d < expected.size(); ++d) {
        error += (out[d] - expected[d]) * (out[d] - expected[d]);
        norm += expected[d] * expected[d];
      }
    }
  }
  EXPECT_GT(norm, 0.0);
  // Most of it is the rounding of weights to 8 bits.
  EXPECT_LT(std::sqrt(error / norm), 0.012);
}

/// With a step of 2^12 a score is an exponent: all 12289 of them, 127 a tile below its largest.
TEST_P(AttentionTest, EveryExponentHasItsWeight) {
  const SequenceSpec spec{
      .owner = 1, .anchor_set = 2, .anchor_tokens = 128, .first_position = 128, .queries = 1};
  PagedAttention attention({1, 1, kSmallDim}, 0, {spec}, 81, 82);
  attention.set_queries(kScoreQuery, 4096);
  std::mt19937_64 random(83);
  for (std::int32_t lowest = 0; lowest < 12289; lowest += 127) {
    std::int32_t denominator = exact::kLargestWeight;
    std::vector<std::int32_t> output(kSmallDim);
    for (std::int32_t j = 0; j < 128; ++j) {
      const std::int32_t score = j == 0 ? 0 : -std::min(lowest + j, 12289);
      const std::vector<std::int8_t> value = random_value(random);
      attention.set_token(0, 1 + j, key_of_score(score), value);
      const std::int32_t weight = exact::attention_weight(score, 4096);
      denominator += j == 0 ? 0 : weight;
      for (std::size_t d = 0; d < kSmallDim; ++d) output[d] += weight * value[d];
    }
    run(attention, GetParam());
    const float* state = attention.states().data() + attention_state_floats(kSmallDim);
    ASSERT_EQ(state[0], 0.0F);
    ASSERT_EQ(state[1], static_cast<float>(denominator)) << lowest;
    for (std::size_t d = 0; d < kSmallDim; ++d)
      ASSERT_EQ(state[2 + d], static_cast<float>(output[d])) << lowest;
  }
}

/// Scores and sums as large as they can be, at both ends of the steps.
TEST_P(AttentionTest, HoldsTheLargestSums) {
  constexpr std::int32_t kDim = 256;
  const SequenceSpec spec{
      .owner = 1, .anchor_set = 2, .anchor_tokens = 128, .first_position = 700, .queries = 3};
  for (const std::int32_t step : {exact::kSmallestStep, exact::kLargestStep}) {
    for (const int sign : {1, -1}) {
      PagedAttention attention({2, 1, kDim}, 0, {spec}, 91, 92);
      const std::vector<std::int8_t> most(kDim, 127);
      const std::vector<std::int8_t> signed_most(kDim, static_cast<std::int8_t>(127 * sign));
      attention.set_queries(most, step);
      for (std::int64_t p = 0; p < 703; ++p) attention.set_token(0, p, signed_most, signed_most);
      run(attention, GetParam());
      const float* state = attention.states().data() + attention_state_floats(kDim);
      EXPECT_EQ(state[0],
                static_cast<float>(sign * 127 * 127 * kDim) * (static_cast<float>(step) * 0x1p-22F));
      EXPECT_EQ(state[1], 254.0F * 128.0F);
      EXPECT_EQ(state[2], static_cast<float>(sign * 254 * 127 * 128));
      EXPECT_EQ(state[1 + kDim], static_cast<float>(sign * 254 * 127 * 128));
    }
  }
}

/// Maxima that rise and fall by less and by more than the headroom, within chunks and between them: every
/// kind of fold comes up, and the result is what the contract's words make of it.
TEST_P(AttentionTest, FoldsRaiseTheReferenceOnlyPastTheHeadroom) {
  constexpr std::int32_t kStep = 41943;  // a hundredth in log2, so that 2000 scores are the headroom
  constexpr std::int32_t kTiles = 24;
  constexpr std::int32_t kTops[kTiles] = {0,     1000,  3500,  3000,  4000,  5000,  4900,  4400,
                                          -2000, 500,   3000,  7000,  6000,  8500,  9000,  -8000,
                                          -9000, -9000, -6000, -5000, 11000, 11000, 12500, 12900};
  const SequenceSpec spec{
      .owner = 1, .anchor_set = 2, .anchor_tokens = 0, .first_position = kTiles * 128 - 50, .queries = 1};
  PagedAttention attention({1, 1, kSmallDim}, 0, {spec}, 101, 102);
  attention.set_queries(kScoreQuery, kStep);
  std::mt19937_64 random(103);
  const AttentionArgs args = attention.args();

  attention.set_token(0, 0, key_of_score(-8000), random_value(random));
  Oracle row;
  Oracle chunk;
  int raised_in_chunks = 0;
  int added_in_chunks = 0;
  for (std::int32_t t = 0; t < kTiles; ++t) {
    std::vector<std::int32_t> scores;
    std::vector<std::vector<std::int8_t>> values;
    for (std::int32_t p = 1 + t * 128; p < 1 + (t + 1) * 128 && p <= spec.first_position; ++p) {
      scores.push_back(kTops[t] - (scores.empty() ? 0 : below(random, 700)));
      values.push_back(random_value(random));
      attention.set_token(0, p, key_of_score(scores.back()), values.back());
    }
    chunk.fold(tile_state(scores, values, kStep));
    if (t % 4 != 3) continue;
    raised_in_chunks += chunk.raised;
    added_in_chunks += chunk.added_above;
    row.fold(chunk);
    chunk = Oracle();
  }
  EXPECT_EQ(raised_in_chunks, 6);
  EXPECT_EQ(added_in_chunks, 8);
  EXPECT_EQ(row.raised, 2);
  EXPECT_EQ(row.added_above, 2);

  run(attention, GetParam());
  Oracle state;
  state.reference = attention.states()[0];
  state.denominator = attention.states()[1];
  std::copy_n(attention.states().begin() + 2, kSmallDim, state.output.begin());
  EXPECT_EQ(state.denominator, 254.0F);
  state.fold(row);
  for (std::size_t d = 0; d < kSmallDim; ++d) {
    EXPECT_EQ(attention.out()[d], state.output[d] * (1.0F / state.denominator) * args.scales.v_scale[d]) << d;
  }
}

/// At the headroom itself the reference stays; one score more raises it.
TEST_P(AttentionTest, TheHeadroomIsExact) {
  constexpr std::int32_t kStep = 1 << 20;  // a quarter in log2
  const SequenceSpec spec{
      .owner = 1, .anchor_set = 2, .anchor_tokens = 256, .first_position = 256, .queries = 1};
  for (const std::int32_t rise : {79, 80, 81}) {
    PagedAttention attention({1, 1, kSmallDim}, 0, {spec}, 111, 112);
    attention.set_queries(kScoreQuery, kStep);
    const std::vector<std::int8_t> value(kSmallDim, 1);
    for (std::int32_t p = 1; p <= 256; ++p) {
      attention.set_token(0, p, key_of_score(p <= 128 ? 5 : 5 + rise), value);
    }
    run(attention, GetParam());
    const float* state = attention.states().data() + attention_state_floats(kSmallDim);
    const float tile = 254.0F * 128.0F;
    const float log2_of_rise = static_cast<float>(rise) / 4.0F;
    const bool raised = rise > 80;
    EXPECT_EQ(state[0], raised ? 1.25F + log2_of_rise : 1.25F);
    EXPECT_EQ(state[1], std::fma(tile, exact::exp2(raised ? -log2_of_rise : log2_of_rise), tile));
    EXPECT_EQ(state[2], state[1]);
  }
}

/// Each fold of every level adds what lies above its reference by all the headroom.
TEST_P(AttentionTest, RisingMaximaDoNotOverflow) {
  constexpr auto kRise = static_cast<std::int32_t>(4.0F * exact::kFoldHeadroom);
  const SequenceSpec spec{
      .owner = 1, .anchor_set = 2, .anchor_tokens = 0, .first_position = 1024, .queries = 1};
  PagedAttention attention({1, 1, kSmallDim}, 0, {spec}, 121, 122);
  attention.set_queries(kScoreQuery, 1 << 20);  // a quarter in log2
  const AttentionArgs args = attention.args();
  const std::vector<std::int8_t> value(kSmallDim, 127);
  const float below = static_cast<float>(1 - kRise) / args.scales.sink[kSinkKeyScale];
  attention.set_token(0, 0, key_of_score(static_cast<std::int32_t>(below)), value);
  for (std::int32_t p = 1; p <= 1024; ++p) {
    // In the first chunk none, then one rise; in the second one, then two.
    const std::int32_t tile = (p - 1) / 128;
    attention.set_token(0, p, key_of_score(kRise * (tile / 4 + (tile % 4 > 0 ? 1 : 0))), value);
  }
  run(attention, GetParam());
  for (std::size_t d = 0; d < kSmallDim; ++d) {
    EXPECT_LT(std::abs(attention.out()[d] / args.scales.v_scale[d] - 127.0F), 0.001F);
  }
}

}  // namespace
}  // namespace fieldprint::backend
