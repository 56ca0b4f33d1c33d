#include "weights/rope_table.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "exact/format.h"

namespace fieldprint::weights {
namespace {

/// Floats between two numbers, in units of the last place.
std::int64_t ulps(float a, float b) {
  const auto order = [](float x) {
    const auto bits = std::bit_cast<std::int32_t>(x);
    return static_cast<std::int64_t>(
        bits < 0 ? static_cast<std::int32_t>(0x80000000U - static_cast<std::uint32_t>(bits)) : bits);
  };
  return std::abs(order(a) - order(b));
}

TEST(RopeTable, FrequenciesAgreeWithLibm) {
  for (const double base : {1.5, 10000.0, 100000.0, 500000.0, 1e6, 1e12}) {
    for (const std::int32_t head_dim : {32, 64, 96, 128, 256}) {
      const auto frequencies = rope_frequencies(base, head_dim);
      ASSERT_EQ(frequencies.size(), static_cast<std::size_t>(head_dim / 2));
      EXPECT_EQ(frequencies[0], 1.0);
      for (std::size_t i = 0; i < frequencies.size(); ++i) {
        const double expected = std::pow(base, -2.0 * static_cast<double>(i) / head_dim);
        EXPECT_NEAR(frequencies[i] / expected, 1.0, 1e-14) << base << " " << head_dim << " " << i;
      }
    }
  }
}

TEST(RopeTable, CosAndSinAgreeWithLibm) {
  for (std::int64_t i = 0; i <= 2000000; ++i) {
    const double angle = static_cast<double>(i) * (0x1p20 / 2000000.0);
    const CosSin turn = cos_sin(angle);
    ASSERT_NEAR(turn.cos, std::cos(angle), 1e-15) << angle;
    ASSERT_NEAR(turn.sin, std::sin(angle), 1e-15) << angle;
  }
}

TEST(RopeTable, CosAndSinAreExactAtZeroAndRightNearQuarterTurns) {
  EXPECT_EQ(cos_sin(0.0).cos, 1.0);
  EXPECT_EQ(cos_sin(0.0).sin, 0.0);
  for (int quarter = 1; quarter < 4000; ++quarter) {
    const double angle = quarter * 0x1.921fb54442d18p+0;
    const CosSin turn = cos_sin(angle);
    ASSERT_NEAR(turn.cos, std::cos(angle), 1e-16 + 1e-15 * std::abs(std::cos(angle)));
    ASSERT_NEAR(turn.sin, std::sin(angle), 1e-16 + 1e-15 * std::abs(std::sin(angle)));
  }
}

TEST(RopeTable, EveryEntryIsWithinOneUlpOfLibm) {
  for (const double base : {10000.0, 1e5, 1e6}) {
    constexpr std::int32_t kHeadDim = 128;
    constexpr std::int32_t kHighRows = 512;  // 131,072 positions
    const auto frequencies = rope_frequencies(base, kHeadDim);
    const auto table = rope_table(frequencies, kHighRows);
    const std::size_t pairs = kHeadDim / 2;
    ASSERT_EQ(table.size(), 2 * pairs * (kHighRows + exact::kRopeLow));
    const auto check = [&](std::size_t begin, std::size_t rows, double stride) {
      for (std::size_t row = 0; row < rows; ++row) {
        for (std::size_t i = 0; i < pairs; ++i) {
          const double angle = static_cast<double>(row) * stride * frequencies[i];
          const std::size_t at = begin + row * pairs + i;
          ASSERT_LE(ulps(table[at], static_cast<float>(std::cos(angle))), 1) << row << " " << i;
          ASSERT_LE(ulps(table[at + rows * pairs], static_cast<float>(std::sin(angle))), 1)
              << row << " " << i;
        }
      }
    };
    check(0, kHighRows, 256.0);
    check(2 * kHighRows * pairs, exact::kRopeLow, 1.0);
  }
}

}  // namespace
}  // namespace fieldprint::weights
