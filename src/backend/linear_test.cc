#include "backend/avx2/linear.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "backend/amx/linear.h"
#include "backend/avx512/linear.h"
#include "backend/kernel_testing.h"
#include "backend/scalar/linear.h"
#include "backend/scalar/quantize.h"

namespace fieldprint::backend {
namespace {

using testing::pick;
using testing::Random;

struct LinearKernels {
  const char* name;
  bool (*supported)();
  void (*linear)(const LinearArgs&, std::int64_t, std::int64_t);
  void (*embed)(const EmbedArgs&, std::int64_t, std::int64_t);
};

class LinearTest : public ::testing::TestWithParam<LinearKernels> {
 protected:
  void SetUp() override {
    if (!GetParam().supported()) GTEST_SKIP() << "this CPU lacks " << GetParam().name;
  }
};

constexpr ActivationFormat kActivations[] = {ActivationFormat::kA8, ActivationFormat::kA16,
                                             ActivationFormat::kA8G32};

testing::QuantStorage quantized(ActivationFormat format, std::int64_t tokens, std::int64_t cols,
                                const std::vector<float>& x) {
  testing::QuantStorage out(format, tokens, cols);
  scalar::quantize({x.data(), out.view()}, 0, tokens);
  return out;
}

/// Runs `kernel` over the tiles in two calls that meet at `split`, and the scalar backend in one.
void expect_same(const LinearKernels& kernel, const testing::WeightStorage& w, testing::QuantStorage& x,
                 std::int64_t tokens, bool accumulate, std::int64_t split, Random& random) {
  const std::int64_t tiles = (w.rows + exact::kTileRows - 1) / exact::kTileRows;
  const std::int64_t stride = w.rows + pick(random, 0, 20);
  // No more memory than the last row needs, so that a sanitizer sees a store past it.
  const std::int64_t size = (tokens - 1) * stride + w.rows;
  const std::vector<float> before = testing::floats_of(testing::Values::kOrdinary, size, random);
  std::vector<float> expected = before;
  std::vector<float> actual = before;
  LinearArgs args{w.view(), x.view(), static_cast<std::int32_t>(tokens), expected.data(), stride, accumulate};
  scalar::linear(args, 0, tiles);
  args.y = actual.data();
  kernel.linear(args, split, tiles);
  kernel.linear(args, 0, split);
  const std::int64_t at = testing::first_difference(expected, actual);
  EXPECT_EQ(at, -1) << "activation " << static_cast<int>(w.activation) << " rows " << w.rows << " cols "
                    << w.cols << " tokens " << tokens << ": token " << at / stride << " row " << at % stride;
}

TEST_P(LinearTest, EqualsScalarOnRandomShapesAndValues) {
  Random random(1);
  for (int round = 0; round < 150; ++round) {
    for (const ActivationFormat activation : kActivations) {
      const std::int64_t rows = pick(random, 1, 100);
      const std::int64_t cols = 32 * pick(random, 1, 20);
      const std::int64_t tokens = pick(random, 1, 30);
      const bool any_half = random() % 4 == 0;
      const auto w = testing::random_weight(activation, rows, cols, any_half, random);
      auto x = quantized(activation, tokens, cols, testing::random_rows(tokens, cols, random));
      const std::int64_t tiles = (rows + exact::kTileRows - 1) / exact::kTileRows;
      expect_same(GetParam(), w, x, tokens, random() % 2 == 0, pick(random, 0, tiles), random);
    }
  }
}

TEST_P(LinearTest, EqualsScalarForEveryTokenCount) {
  Random random(2);
  const std::int64_t shapes[][2] = {{16, 64}, {48, 96}, {56, 192}};
  for (std::int64_t tokens = 1; tokens <= 40; ++tokens) {
    for (const ActivationFormat activation : kActivations) {
      for (const auto& [rows, cols] : shapes) {
        const auto w = testing::random_weight(activation, rows, cols, false, random);
        auto x = quantized(activation, tokens, cols, testing::random_rows(tokens, cols, random));
        expect_same(GetParam(), w, x, tokens, false, 0, random);
      }
    }
  }
}

TEST_P(LinearTest, EqualsScalarOnModelShapes) {
  Random random(3);
  const std::int64_t shapes[][2] = {{960, 576}, {640, 2048}, {100, 4096}, {33, 65536}};
  for (const auto& [rows, cols] : shapes) {
    for (const ActivationFormat activation : kActivations) {
      const auto w = testing::random_weight(activation, rows, cols, false, random);
      auto x =
          quantized(activation, 13, cols, testing::floats_of(testing::Values::kOrdinary, 13 * cols, random));
      expect_same(GetParam(), w, x, 13, true, 1, random);
    }
  }
}

TEST_P(LinearTest, EqualsScalarOnSeveralHundredTokens) {
  Random random(4);
  for (const ActivationFormat activation : kActivations) {
    const auto w = testing::random_weight(activation, 40, 64, false, random);
    auto x = quantized(activation, 517, 64, testing::floats_of(testing::Values::kOutlier, 517 * 64, random));
    expect_same(GetParam(), w, x, 517, false, 0, random);
  }
}

/// Every integer at its bound: no intermediate sum may overflow or saturate.
TEST_P(LinearTest, EqualsScalarOnExtremeDigits) {
  Random random(5);
  constexpr std::int64_t kCols = 65536;
  constexpr std::int64_t kTokens = 3;
  for (const ActivationFormat activation : kActivations) {
    for (const int weight : {0x00, 0x7F, 0x80, 0xFF}) {
      for (const int digit : {-128, -127, 127}) {
        auto w = testing::random_weight(activation, 17, kCols, false, random);
        const bool w4 = w.format == LinearFormat::kW4G32;
        for (std::int64_t i = 0; i < w.bytes(); ++i) {
          if (!w4 || i % exact::kW4TileBlockBytes < 256) w.data()[i] = static_cast<std::uint8_t>(weight);
        }
        auto x = quantized(activation, kTokens, kCols, std::vector<float>(kTokens * kCols, 1.0F));
        for (std::int8_t& q : x.q) q = static_cast<std::int8_t>(digit);
        for (std::int32_t& sum : x.row_sum) sum = static_cast<std::int32_t>(digit * kCols);
        expect_same(GetParam(), w, x, kTokens, false, 0, random);
      }
    }
  }
}

TEST_P(LinearTest, EmbedEqualsScalar) {
  Random random(6);
  for (int round = 0; round < 60; ++round) {
    for (const ActivationFormat activation : kActivations) {
      const std::int64_t rows = pick(random, 1, 70);
      const std::int64_t cols = 32 * pick(random, 1, 20);
      const auto table = testing::random_weight(activation, rows, cols, random() % 4 == 0, random);
      std::vector<std::int32_t> tokens(static_cast<std::size_t>(pick(random, 1, 9)));
      for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(pick(random, 0, rows - 1));
      std::vector<float> expected(tokens.size() * static_cast<std::size_t>(cols), 7.0F);
      std::vector<float> actual = expected;
      const auto last = static_cast<std::int64_t>(tokens.size());
      const float scale = random() % 2 == 0 ? 1.0F : testing::unit_float(random) * 30.0F;
      scalar::embed({table.view(), tokens.data(), scale, expected.data()}, 1, last);
      GetParam().embed({table.view(), tokens.data(), scale, actual.data()}, 1, last);
      EXPECT_EQ(testing::first_difference(expected, actual), -1)
          << "activation " << static_cast<int>(activation) << " cols " << cols;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Isa, LinearTest,
    ::testing::Values(LinearKernels{"avx2", testing::cpu_has_avx2, avx2::linear, avx2::embed},
                      LinearKernels{"avx512", testing::cpu_has_avx512, avx512::linear, avx512::embed},
                      LinearKernels{"amx", testing::cpu_has_amx, amx::linear, avx512::embed}),
    [](const auto& kernels) { return std::string(kernels.param.name); });

}  // namespace
}  // namespace fieldprint::backend
