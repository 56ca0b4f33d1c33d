#include "backend/cuda/linear.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "backend/cuda/linear_kernels.h"
#include "backend/cuda/linear_testing.h"
#include "backend/kernel_testing.h"
#include "backend/scalar/linear.h"
#include "backend/scalar/quantize.h"

namespace fieldprint::backend::cuda {
namespace {

using backend::testing::pick;
using backend::testing::QuantStorage;
using backend::testing::Random;
using backend::testing::Values;
using backend::testing::WeightStorage;
using testing::DeviceArray;
using testing::DeviceRows;
using testing::DeviceWeight;

/// linear() itself, and the kernels that it chooses from, each on every shape.
struct Kernel {
  const char* name;
  bool w8r;
  bool w4g32;
  void (*run)(const LinearArgs&, Stream);
};

class LinearTest : public ::testing::TestWithParam<Kernel> {
 protected:
  void SetUp() override {
    if (!testing::has_device()) GTEST_SKIP() << "no CUDA device";
  }

  static std::vector<ActivationFormat> activations() {
    std::vector<ActivationFormat> formats;
    if (GetParam().w8r) formats = {ActivationFormat::kA8, ActivationFormat::kA16};
    if (GetParam().w4g32) formats.push_back(ActivationFormat::kA8G32);
    return formats;
  }
};

QuantStorage quantized(ActivationFormat format, std::int64_t tokens, std::int64_t cols,
                       const std::vector<float>& x) {
  QuantStorage out(format, tokens, cols);
  scalar::quantize({x.data(), out.view()}, 0, tokens);
  return out;
}

/// Runs the kernel and the scalar backend on the same data, into rows a little further apart than they are
/// long.
void expect_same(WeightStorage& w, QuantStorage& x, std::int64_t tokens, bool accumulate, Random& random) {
  const std::int64_t tiles = (w.rows + exact::kTileRows - 1) / exact::kTileRows;
  const std::int64_t stride = random() % 2 == 0 ? (w.rows + 3) / 4 * 4 : w.rows + pick(random, 0, 20);
  const std::int64_t size = (tokens - 1) * stride + w.rows;
  std::vector<float> expected = backend::testing::floats_of(Values::kOrdinary, size, random);
  const DeviceArray<float> y(expected);
  const DeviceWeight weight(w);
  const DeviceRows rows(x);
  LinearArgs args{w.view(), x.view(), static_cast<std::int32_t>(tokens), expected.data(), stride, accumulate};
  // Twice, since a kernel may start before the one ahead of it has ended.
  for (int i = 0; i < 2; ++i) scalar::linear(args, 0, tiles);
  args.w = weight.view();
  args.x = rows.view();
  args.y = y.get();
  for (int i = 0; i < 2; ++i) LinearTest::GetParam().run(args, nullptr);
  check(cudaDeviceSynchronize(), "linear");
  const std::vector<float> actual = y.download();
  const std::int64_t at = backend::testing::first_difference(expected, actual);
  if (at < 0) return;
  const auto i = static_cast<std::size_t>(at);
  ADD_FAILURE() << "activation " << static_cast<int>(w.activation) << " rows " << w.rows << " cols " << w.cols
                << " tokens " << tokens << ": token " << at / stride << " row " << at % stride << " is "
                << actual[i] << ", not " << expected[i];
}

TEST_P(LinearTest, EqualsScalarOnRandomShapesAndValues) {
  Random random(1);
  for (int round = 0; round < 60; ++round) {
    for (const ActivationFormat activation : activations()) {
      const std::int64_t rows = pick(random, 1, 200);
      const std::int64_t cols = 32 * pick(random, 1, 40);
      const std::int64_t tokens = pick(random, 1, 70);
      auto w = backend::testing::random_weight(activation, rows, cols, random() % 4 == 0, random);
      auto x = quantized(activation, tokens, cols, backend::testing::random_rows(tokens, cols, random));
      expect_same(w, x, tokens, random() % 2 == 0, random);
    }
  }
}

TEST_P(LinearTest, EqualsScalarForEveryTokenCount) {
  Random random(2);
  for (std::int64_t tokens = 1; tokens <= 40; ++tokens) {
    for (const ActivationFormat activation : activations()) {
      for (const std::int64_t rows : {16, 56}) {
        auto w = backend::testing::random_weight(activation, rows, 96, false, random);
        auto x = quantized(activation, tokens, 96, backend::testing::random_rows(tokens, 96, random));
        expect_same(w, x, tokens, false, random);
      }
    }
  }
}

/// Few rows and many columns, many rows and few columns, tiles that fill the device once, twice and more
/// often: every way of cutting the work.
TEST_P(LinearTest, EqualsScalarOnModelShapes) {
  Random random(3);
  const std::int64_t shapes[][3] = {{960, 576, 1},    {640, 2048, 13},  {100, 4096, 1},   {100, 4128, 30},
                                    {33, 65536, 3},   {3072, 576, 8},   {1000, 1056, 90}, {300, 800, 200},
                                    {130, 4096, 260}, {1000, 160, 700}, {9000, 96, 10},   {9000, 64, 40},
                                    {17000, 64, 10},  {17000, 64, 20},  {17000, 32, 60}};
  for (const auto& [rows, cols, tokens] : shapes) {
    for (const ActivationFormat activation : activations()) {
      auto w = backend::testing::random_weight(activation, rows, cols, false, random);
      auto x = quantized(activation, tokens, cols,
                         backend::testing::floats_of(Values::kOrdinary, tokens * cols, random));
      expect_same(w, x, tokens, true, random);
    }
  }
}

TEST_P(LinearTest, EqualsScalarOnManyTokens) {
  Random random(4);
  const std::int64_t shapes[][3] = {{40, 64, 517}, {1040, 160, 2100}, {5, 32, 8192}};
  for (const auto& [rows, cols, tokens] : shapes) {
    for (const ActivationFormat activation : activations()) {
      auto w = backend::testing::random_weight(activation, rows, cols, false, random);
      auto x = quantized(activation, tokens, cols,
                         backend::testing::floats_of(Values::kOutlier, tokens * cols, random));
      expect_same(w, x, tokens, false, random);
    }
  }
}

/// Every integer at its bound: no intermediate sum may overflow or saturate.
TEST_P(LinearTest, EqualsScalarOnExtremeDigits) {
  Random random(5);
  constexpr std::int64_t kCols = 65536;
  constexpr std::int64_t kTokens = 3;
  for (const ActivationFormat activation : activations()) {
    for (const int weight : {0x00, 0x7F, 0x80, 0xFF}) {
      for (const int digit : {-128, -127, 127}) {
        auto w = backend::testing::random_weight(activation, 17, kCols, false, random);
        const bool w4 = w.format == LinearFormat::kW4G32;
        for (std::int64_t i = 0; i < w.bytes(); ++i) {
          if (!w4 || i % exact::kW4TileBlockBytes < 256) w.data()[i] = static_cast<std::uint8_t>(weight);
        }
        auto x = quantized(activation, kTokens, kCols, std::vector<float>(kTokens * kCols, 1.0F));
        for (std::int8_t& q : x.q) q = static_cast<std::int8_t>(digit);
        expect_same(w, x, kTokens, false, random);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, LinearTest,
                         ::testing::Values(Kernel{"chosen", true, true, linear},
                                           Kernel{"w8r_direct", true, false, linear_w8r_direct},
                                           Kernel{"w8r_tiled", true, false, linear_w8r_tiled},
                                           Kernel{"w8r_large", true, false, linear_w8r_large},
                                           Kernel{"w4g32_direct", false, true, linear_w4g32_direct},
                                           Kernel{"w4g32_tiled", false, true, linear_w4g32_tiled}),
                         [](const auto& kernel) { return std::string(kernel.param.name); });

TEST(EmbedTest, EqualsScalar) {
  if (!testing::has_device()) GTEST_SKIP() << "no CUDA device";
  Random random(6);
  for (int round = 0; round < 60; ++round) {
    for (const auto activation : {ActivationFormat::kA8, ActivationFormat::kA8G32}) {
      const std::int64_t rows = pick(random, 1, 70);
      const std::int64_t cols = 32 * pick(random, 1, 50);
      auto table = backend::testing::random_weight(activation, rows, cols, random() % 4 == 0, random);
      std::vector<std::int32_t> tokens(static_cast<std::size_t>(pick(random, 1, 9)));
      for (std::int32_t& token : tokens) token = static_cast<std::int32_t>(pick(random, 0, rows - 1));
      const auto count = static_cast<std::int32_t>(tokens.size());
      std::vector<float> expected(tokens.size() * static_cast<std::size_t>(cols), 7.0F);
      const DeviceArray<float> out(expected);
      const DeviceArray<std::int32_t> ids(tokens);
      const DeviceWeight weight(table);
      const float scale = random() % 2 == 0 ? 1.0F : backend::testing::unit_float(random) * 30.0F;
      scalar::embed({table.view(), tokens.data(), scale, expected.data()}, 0, count);
      embed({weight.view(), ids.get(), scale, out.get()}, count, nullptr);
      check(cudaDeviceSynchronize(), "embed");
      EXPECT_EQ(backend::testing::first_difference(expected, out.download()), -1)
          << "activation " << static_cast<int>(activation) << " cols " << cols;
    }
  }
}

}  // namespace
}  // namespace fieldprint::backend::cuda
