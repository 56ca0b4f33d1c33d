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

TEST(Bf16, EveryFinitePatternSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x7F80; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    EXPECT_EQ(float_to_bits(from_bf16(half)), bits << 16);
    EXPECT_EQ(to_bf16(from_bf16(half)), half);
  }
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    EXPECT_EQ(float_to_bits(from_bf16(static_cast<std::uint16_t>(bits))), bits << 16);
  }
}

TEST(Bf16, RoundsToNearestTiesToEven) {
  for (std::uint32_t bits = 0; bits < 0x7F7F; ++bits) {
    const std::uint32_t tie = bits << 16 | 0x8000U;
    EXPECT_EQ(to_bf16(bits_to_float(tie - 1)), bits);
    EXPECT_EQ(to_bf16(bits_to_float(tie)), bits + (bits & 1U));
    EXPECT_EQ(to_bf16(bits_to_float(tie + 1)), bits + 1);
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
