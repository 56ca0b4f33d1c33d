#include "exact/arith.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace fieldprint::exact {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// An approximate comparison: libm in binary64 says how good the polynomial is, not what its bits are.
TEST(Exp2, IsApproximatelyLibmsExp2) {
  double worst = 0.0;
  constexpr int kSteps = 2000003;
  for (int i = 0; i <= kSteps; ++i) {
    const float x = -120.0F + 240.0F * (static_cast<float>(i) / static_cast<float>(kSteps));
    const double expected = std::exp2(static_cast<double>(x));
    worst = std::max(worst, std::abs(static_cast<double>(exp2(x)) - expected) / expected);
  }
  // The range of the polynomial, finer.
  for (int i = -(1 << 23); i <= 1 << 23; i += 3) {
    const float x = static_cast<float>(i) * 0x1p-24F;
    const double expected = std::exp2(static_cast<double>(x));
    worst = std::max(worst, std::abs(static_cast<double>(exp2(x)) - expected) / expected);
  }
  EXPECT_LE(worst, 1.72e-7);
}

TEST(Exp2, IsExactAtIntegers) {
  for (int i = -120; i <= 120; ++i) EXPECT_EQ(exp2(static_cast<float>(i)), std::ldexp(1.0F, i)) << i;
}

TEST(Exp2, ClampsItsArgument) {
  for (const float x : {-120.5F, -1000.0F, -3e38F, -kInfinity}) EXPECT_EQ(exp2(x), 0x1p-120F) << x;
  for (const float x : {120.5F, 1000.0F, 3e38F, kInfinity}) EXPECT_EQ(exp2(x), 0x1p120F) << x;
  EXPECT_EQ(exp2(-0.0F), 1.0F);
  EXPECT_EQ(exp2(0x1p-149F), 1.0F);
}

TEST(Exp2, IsMonotonicAcrossTheEdgesOfThePolynomial) {
  for (int i = -119; i < 119; ++i) {
    const float half = static_cast<float>(i) + 0.5F;
    float before = exp2(half - 0x1p-10F);
    for (int step = -8; step < 8; ++step) {
      const float x = half + static_cast<float>(step) * 0x1p-13F;
      const float here = exp2(x);
      EXPECT_LE(before, here) << x;
      before = here;
    }
  }
}

TEST(Log2Of, IsExactAtPowersOfTwo) {
  for (int i = 0; i < 64; ++i) EXPECT_EQ(log2_of(std::uint64_t{1} << i), static_cast<double>(i));
}

/// Approximate: against libm in its widest type.
TEST(Log2Of, IsApproximatelyTheLogarithm) {
  const auto error = [](std::uint64_t x) {
    return std::abs(static_cast<long double>(log2_of(x)) - std::log2(static_cast<long double>(x)));
  };
  for (std::uint64_t x = 1; x < 100000; ++x) EXPECT_LE(error(x), 1e-13L) << x;
  for (std::uint64_t x = 0x8000000000000001U; x > 3; x = x / 7 * 5 + 1) {
    ASSERT_LE(error(x), 1e-13L) << x;
    if (x < 100) break;
  }
  EXPECT_LE(error(std::numeric_limits<std::uint64_t>::max()), 1e-13L);
}

TEST(Log2OfDeathTest, ZeroIsABrokenInvariant) { EXPECT_DEATH(log2_of(0), "log2 of zero"); }

TEST(RoundToInt, RoundsToNearestTiesToEven) {
  EXPECT_EQ(round_to_int(0.5F), 0);
  EXPECT_EQ(round_to_int(1.5F), 2);
  EXPECT_EQ(round_to_int(2.5F), 2);
  EXPECT_EQ(round_to_int(-0.5F), 0);
  EXPECT_EQ(round_to_int(-1.5F), -2);
  EXPECT_EQ(round_to_int(-2.5F), -2);
  EXPECT_EQ(round_to_int(std::nextafter(0.5F, 1.0F)), 1);
  EXPECT_EQ(round_to_int(std::nextafter(0.5F, 0.0F)), 0);
  EXPECT_EQ(round_to_int(-0.0F), 0);
  EXPECT_EQ(round_to_int(0x1p22F), 1 << 22);
  EXPECT_EQ(round_to_int(-0x1p22F), -(1 << 22));
  for (int i = -70000; i <= 70000; ++i) {
    const float x = static_cast<float>(i) * 0.25F;
    ASSERT_EQ(round_to_int(x), static_cast<std::int32_t>(std::nearbyint(x))) << x;
  }
}

TEST(RoundProduct, RoundsTheExactProductOnceTiesToEven) {
  EXPECT_EQ(round_product(0.5F, 1.0F), 0);
  EXPECT_EQ(round_product(0.5F, 3.0F), 2);
  EXPECT_EQ(round_product(2.5F, 1.0F), 2);
  EXPECT_EQ(round_product(0.0F, 65535.0F), 0);
  EXPECT_EQ(round_product(1.0F, 0x1p23F), 1 << 23);
  EXPECT_EQ(round_product(1.0F, 65535.0F), 65535);
  // The product is 2.5 + 2^-22, which a rounded product would make the tie 2.5.
  const float x = 1.0F + 0x1p-23F;
  const float y = 2.5F - 0x1p-22F;
  EXPECT_GT(static_cast<double>(x) * static_cast<double>(y), 2.5);
  EXPECT_EQ(x * y, 2.5F);
  EXPECT_EQ(round_product(x, y), 3);
}

TEST(QuantScale, RowsBelowTheSmallestAreZero) {
  for (const float amax : {0.0F, 0x1p-149F, 0x1p-126F, std::nextafter(kSmallestAmax, 0.0F)}) {
    EXPECT_EQ(quant_scale(amax, kA8Max).inverse, 0.0F);
    EXPECT_EQ(quant_scale(amax, kA8Max).scale, 0.0F);
  }
}

TEST(QuantScale, FiniteRowsHaveFiniteScales) {
  for (const float levels : {kA8Max, kA16Max}) {
    for (const float amax : {kSmallestAmax, 1e-20F, 1.0F, 127.0F, 1e20F, kMaxFloat}) {
      const QuantScale made = quant_scale(amax, levels);
      EXPECT_EQ(made.inverse, levels / amax);
      EXPECT_EQ(made.scale, amax / levels);
      EXPECT_TRUE(std::isfinite(made.inverse) && std::isfinite(made.scale)) << amax;
      const auto largest = static_cast<std::int32_t>(levels);
      EXPECT_EQ(quantise(amax, made.inverse), largest) << amax;
      EXPECT_EQ(quantise(-amax, made.inverse), -largest) << amax;
    }
  }
}

TEST(QuantScale, RowsThatAreNotFiniteAreMarkedByTheirScale) {
  for (const float amax : {kInfinity, kNan}) {
    EXPECT_EQ(quant_scale(amax, kA8Max).inverse, 0.0F);
    EXPECT_EQ(float_to_bits(quant_scale(amax, kA8Max).scale), 0x7FC00000U);
  }
}

TEST(Quantise, IsZeroWithoutAnInverseWhateverTheValue) {
  for (const float x : {1.0F, -5.0F, kInfinity, -kInfinity, kNan}) EXPECT_EQ(quantise(x, 0.0F), 0);
}

TEST(AbsMax, ANanIsLargerThanEverything) {
  const std::vector<float> finite = {1.0F, -7.5F, 0.0F, 3.0F};
  EXPECT_EQ(abs_max(finite), 7.5F);
  const std::vector<float> infinite = {1.0F, -kInfinity, 3.0F};
  EXPECT_EQ(abs_max(infinite), kInfinity);
  const std::vector<float> with_nan = {kInfinity, -kNan, 3.0F};
  EXPECT_TRUE(std::isnan(abs_max(with_nan)));
  EXPECT_EQ(abs_max({}), 0.0F);
}

TEST(Bf16, EveryPatternIsTheUpperHalfOfAFloat) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    EXPECT_EQ(float_to_bits(from_bf16(static_cast<std::uint16_t>(bits))), bits << 16);
  }
}

/// The value of a half by its definition (IEEE 754-2008, 3.4).
double half_value(std::uint32_t bits) {
  const double sign = (bits & 0x8000U) != 0 ? -1.0 : 1.0;
  const int exponent = static_cast<int>((bits >> 10) & 31U);
  const double fraction = static_cast<double>(bits & 0x3FFU) / 1024.0;
  if (exponent == 0) return sign * std::ldexp(fraction, -14);
  return sign * std::ldexp(1.0 + fraction, exponent - 15);
}

TEST(F16, EveryPatternHasItsValue) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const float made = from_f16(static_cast<std::uint16_t>(bits));
    if ((bits & 0x7C00U) != 0x7C00U) {
      EXPECT_EQ(static_cast<double>(made), half_value(bits)) << bits;
      EXPECT_EQ(std::signbit(made), (bits & 0x8000U) != 0) << bits;
    } else if ((bits & 0x3FFU) != 0) {
      EXPECT_TRUE(std::isnan(made)) << bits;
    } else {
      EXPECT_EQ(made, (bits & 0x8000U) != 0 ? -kInfinity : kInfinity);
    }
  }
}

/// Rounding never decreases as x rises, so what it does around each tie says what it does between them.
TEST(F16, RoundsToTheNearestTiesToEven) {
  for (std::uint32_t bits = 0x0400; bits < 0x7BFF; ++bits) {
    const float here = from_f16(static_cast<std::uint16_t>(bits));
    const float next = from_f16(static_cast<std::uint16_t>(bits + 1));
    const float tie = 0.5F * (here + next);
    for (const float sign : {1.0F, -1.0F}) {
      ASSERT_EQ(round_to_f16(sign * here), sign * here) << bits;
      ASSERT_EQ(round_to_f16(sign * std::nextafter(tie, 0.0F)), sign * here) << bits;
      ASSERT_EQ(round_to_f16(sign * tie), sign * (bits % 2 == 0 ? here : next)) << bits;
      ASSERT_EQ(round_to_f16(sign * std::nextafter(tie, kInfinity)), sign * next) << bits;
    }
  }
  EXPECT_EQ(round_to_f16(65504.0F), 65504.0F);
  EXPECT_EQ(float_to_bits(round_to_f16(-0.0F)), 0x80000000U);
}

TEST(QueryStep, HasItsBounds) {
  EXPECT_EQ(query_step(0.0F), kSmallestStep);
  EXPECT_EQ(query_step(0x1p-149F), kSmallestStep);
  EXPECT_EQ(query_step(127.0F * kSmallestStep * 0x1p-22F), kSmallestStep + 1);
  EXPECT_EQ(query_step(std::nextafter(127.0F * kSmallestStep * 0x1p-22F, 0.0F)), kSmallestStep);
  EXPECT_EQ(query_step(std::nextafter(127.0F, 0.0F)), kLargestStep);
  EXPECT_EQ(query_step(126.9999F), 4194300 + 1);
  EXPECT_EQ(query_step(127.0F), kLargestStep);
  EXPECT_EQ(query_step(kMaxFloat), kLargestStep);
}

TEST(QueryStep, IsTheLeastOfWhich127HoldTheRow) {
  std::int32_t before = kSmallestStep;
  float amax = 1e-6F;
  while (amax < 127.0F) {
    const std::int32_t step = query_step(amax);
    EXPECT_GE(step, before) << amax;
    before = step;
    // One rounding of the product lies between the step and the quotient.
    const double steps = static_cast<double>(amax) * 0x1p22 / 127.0;
    EXPECT_GT(step, steps * (1.0 - 0x1p-23)) << amax;
    if (step > kSmallestStep) {
      EXPECT_LE(step, steps * (1.0 + 0x1p-23) + 1.0) << amax;
    }
    EXPECT_LE(static_cast<double>(amax) * (0x1p22 / step), 127.0 * (1.0 + 0x1p-20)) << amax;
    amax *= 1.0003F;
  }
}

TEST(ClampToLevel, RoundsWithin127) {
  EXPECT_EQ(clamp_to_level(0.5F), 0);
  EXPECT_EQ(clamp_to_level(-1.5F), -2);
  EXPECT_EQ(clamp_to_level(126.5F), 126);
  EXPECT_EQ(clamp_to_level(126.50001F), 127);
  for (const float x : {127.0F, 127.5F, 128.0F, 300.0F, kMaxFloat, kInfinity}) {
    EXPECT_EQ(clamp_to_level(x), 127) << x;
    EXPECT_EQ(clamp_to_level(-x), -127) << x;
  }
}

/// Steps of every size, with both ends.
std::vector<std::int32_t> sample_steps() {
  std::vector<std::int32_t> steps;
  for (std::int32_t power = kSmallestStep; power < kLargestStep; power *= 2) {
    for (const std::int32_t step : {power, power + 1, power + power / 3, 2 * power - 1})
      steps.push_back(step);
  }
  steps.push_back(kLargestStep);
  return steps;
}

/// Each `below` that gives another exponent, or nearly so, from 0 to some way past the clamp.
std::vector<std::int32_t> sample_scores(std::int32_t step) {
  const std::int32_t floor = -(kScoreSpan / step);
  const std::int32_t stride = std::max(1, 1024 / step);
  std::vector<std::int32_t> scores;
  for (std::int32_t below = 0; below >= floor; below -= stride) scores.push_back(below);
  for (const std::int32_t below : {floor, floor - 1, 2 * floor, -(1 << 24), -(1 << 30)}) {
    if (below <= floor) scores.push_back(below);
  }
  return scores;
}

TEST(AttentionWeight, NeverIncreasesAsTheScoreFalls) {
  for (const std::int32_t step : sample_steps()) {
    EXPECT_EQ(attention_weight(0, step), kLargestWeight) << step;
    std::int32_t before = kLargestWeight;
    for (const std::int32_t below : sample_scores(step)) {
      const std::int32_t weight = attention_weight(below, step);
      ASSERT_LE(weight, before) << step << ' ' << below;
      ASSERT_GE(weight, 0) << step << ' ' << below;
      before = weight;
    }
    EXPECT_EQ(before, 0) << step;
  }
}

TEST(AttentionWeight, IsZeroAtTheClamp) {
  for (std::int32_t step = kSmallestStep; step <= kLargestStep; step += step < 100000 ? 1 : 37) {
    ASSERT_EQ(attention_weight(-(kScoreSpan / step), step), 0) << step;
  }
  EXPECT_EQ(attention_weight(-(kScoreSpan / kLargestStep), kLargestStep), 0);
}

/// Approximate: against libm's exp2 in binary64. The polynomial is fitted to 254.67·2^x, which 254 cuts at 0.
TEST(AttentionWeight, IsApproximatelyAPowerOfTwo) {
  for (const std::int32_t step : sample_steps()) {
    for (const std::int32_t below : sample_scores(step)) {
      const double wanted = 254.67 * std::exp2(static_cast<double>(below) * step * 0x1p-22);
      ASSERT_LE(std::abs(attention_weight(below, step) - wanted), 0.5 + 0.0051 * wanted)
          << step << ' ' << below;
    }
  }
}

/// The words of the contract, in binary64, which holds every intermediate result exactly.
TEST(AttentionWeight, IsWhatTheContractSays) {
  const auto round_to = [](double x, double unit) { return std::nearbyint(x / unit) * unit; };
  const auto to_half = [&](double x) { return round_to(x, std::ldexp(1.0, std::ilogb(x) - 10)); };
  for (const std::int32_t step : sample_steps()) {
    for (const std::int32_t below : sample_scores(step)) {
      const double d = std::max(below, -(kScoreSpan / step));
      const int e = 15360 + static_cast<int>(std::nearbyint(d * step / 4096.0));
      const double h = half_value(static_cast<std::uint32_t>(e));
      const double u = 1.0 + (e & 1023) / 1024.0;
      const double g = to_half(to_half(57.59375 * u - 172.125) * u + 368.5);
      ASSERT_EQ(attention_weight(below, step), static_cast<int>(std::nearbyint(h * g)))
          << step << ' ' << below;
    }
  }
}

TEST(ValueSlot, IsTheOrderOfTheTensorCores) {
  const std::vector<std::int32_t> order = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
  for (std::int32_t at = 0; at < kPageTokens; ++at) {
    const std::int32_t token = at - at % 16 + order[static_cast<std::size_t>(at % 16)];
    EXPECT_EQ(value_slot(token), at);
  }
}

TEST(ReduceLanes, AddsLanesThatAreHalfApartFirst) {
  std::array<float, 32> lanes{};
  lanes[0] = 0x1p24F;
  lanes[1] = 1.0F;
  lanes[16] = -0x1p24F;
  lanes[17] = 1.0F;
  // 0 + 16 cancel before lane 1 comes; from left to right, 2^24 + 1 would lose the 1.
  EXPECT_EQ(reduce_lanes(lanes), 2.0F);
  float left_to_right = 0.0F;
  for (const float lane : lanes) left_to_right += lane;
  EXPECT_EQ(left_to_right, 1.0F);
}

TEST(ReduceLanes, GivesTheTreesBits) {
  std::array<float, 32> lanes{};
  for (std::size_t i = 0; i < 32; ++i) lanes[i] = 1.0F / static_cast<float>(3 * i + 1);
  std::array<float, 16> by16{};
  for (std::size_t i = 0; i < 16; ++i) by16[i] = lanes[i] + lanes[i + 16];
  std::array<float, 8> by8{};
  for (std::size_t i = 0; i < 8; ++i) by8[i] = by16[i] + by16[i + 8];
  std::array<float, 4> by4{};
  for (std::size_t i = 0; i < 4; ++i) by4[i] = by8[i] + by8[i + 4];
  EXPECT_EQ(reduce_lanes(lanes), (by4[0] + by4[2]) + (by4[1] + by4[3]));
}

TEST(SumOfSquares, TakesOneFmaAnElementInItsLane) {
  std::vector<float> x(64, 0.0F);
  // Lane 5: 2^-24, then (1 + 2^-12)² = 1 + 2^-11 + 2^-24, which a rounded square would have lost.
  x[5] = 0x1p-12F;
  x[37] = 1.0F + 0x1p-12F;
  EXPECT_EQ(sum_of_squares(x), 1.0F + 0x1p-11F + 0x1p-23F);
  EXPECT_EQ(x[5] * x[5] + x[37] * x[37], 1.0F + 0x1p-11F);
}

TEST(InverseRms, OfAZeroRowIsFiniteWithEpsilon) {
  const std::vector<float> x(32, 0.0F);
  EXPECT_EQ(inverse_rms(x, 0x1p-20F), 0x1p10F);
}

TEST(Gates, HaveTheirLimits) {
  EXPECT_EQ(silu(0.0F), 0.0F);
  EXPECT_EQ(gelu(0.0F), 0.0F);
  EXPECT_EQ(silu(100.0F), 100.0F);
  EXPECT_EQ(gelu(100.0F), 100.0F);
  EXPECT_LT(std::abs(silu(-100.0F)), 1e-30F);
  EXPECT_LT(std::abs(gelu(-100.0F)), 1e-30F);
}

/// Approximate: against the formulas in libm's binary64.
TEST(Gates, AreApproximatelyTheirFormulas) {
  for (int i = -2000; i <= 2000; ++i) {
    const float x = static_cast<float>(i) / 200.0F;
    const double wide = static_cast<double>(x);
    const double silu_of_x = wide / (1.0 + std::exp(-wide));
    const double inner = std::sqrt(2.0 / M_PI) * (wide + 0.044715 * wide * wide * wide);
    const double gelu_of_x = 0.5 * wide * (1.0 + std::tanh(inner));
    EXPECT_LE(std::abs(static_cast<double>(silu(x)) - silu_of_x), 1e-6 * (1.0 + std::abs(wide)));
    EXPECT_LE(std::abs(static_cast<double>(gelu(x)) - gelu_of_x), 1e-6 * (1.0 + std::abs(wide)));
  }
}

}  // namespace
}  // namespace fieldprint::exact
