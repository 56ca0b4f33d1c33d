#include "backend/cuda/quantize.h"

#include <gtest/gtest.h>

#include <bit>
#include <vector>

#include "backend/cuda/row_testing.h"
#include "backend/kernel_testing.h"
#include "backend/scalar/quantize.h"

/// What the tests of all kernels (backend/quantize_test.cc) leave out: shapes at which the device's kernels
/// change how they work.
namespace fieldprint::backend {
namespace {

using backend::testing::QuantStorage;
using backend::testing::Random;
using backend::testing::Values;

constexpr ActivationFormat kFormats[] = {ActivationFormat::kA8, ActivationFormat::kA16,
                                         ActivationFormat::kA8G32};

struct Shape {
  std::int64_t tokens;
  std::int64_t cols;
};
// One to eight quads a thread and more, shared memory and none, few rows and many.
constexpr Shape kShapes[] = {{1, 32},    {1, 4096},  {3, 4128},  {2, 8192},   {2, 14336}, {2, 16384},
                             {2, 16416}, {1, 32800}, {2, 65536}, {133, 2048}, {200, 576}, {140, 4160}};

class CudaQuantize : public ::testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    if (!cuda::testing::has_device()) GTEST_SKIP() << "there is no GPU here";
  }
};
INSTANTIATE_TEST_SUITE_P(Shapes, CudaQuantize, ::testing::ValuesIn(kShapes), [](const auto& shape) {
  return std::to_string(shape.param.tokens) + "x" + std::to_string(shape.param.cols);
});

template <class T>
std::int64_t first_difference(const std::vector<T>& a, const std::vector<T>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i]) return static_cast<std::int64_t>(i);
  }
  return -1;
}

void expect_same(const QuantStorage& expected, const QuantStorage& actual) {
  EXPECT_EQ(first_difference(expected.q, actual.q), -1);
  EXPECT_EQ(backend::testing::first_difference(expected.scale, actual.scale), -1);
  EXPECT_EQ(first_difference(expected.row_sum, actual.row_sum), -1);
  EXPECT_EQ(backend::testing::first_difference(expected.block_sum, actual.block_sum), -1);
  EXPECT_EQ(first_difference(expected.non_finite, actual.non_finite), -1);
}

TEST_P(CudaQuantize, QuantisersEqualScalar) {
  const auto [tokens, cols] = GetParam();
  Random random(static_cast<std::uint64_t>(cols));
  for (const ActivationFormat format : kFormats) {
    const std::vector<float> x = backend::testing::random_rows(2 * tokens, cols, random);
    const std::vector<float> weight = backend::testing::floats_of(Values::kOrdinary, cols, random);
    QuantStorage expected(format, tokens, cols);
    QuantStorage actual(format, tokens, cols);
    scalar::quantize({x.data(), expected.view()}, 0, tokens);
    cuda::testing::quantize({x.data(), actual.view()}, 0, tokens);
    expect_same(expected, actual);
    scalar::norm_quantize({x.data(), nullptr, weight.data(), 1e-5F, expected.view()}, 0, tokens);
    cuda::testing::norm_quantize({x.data(), nullptr, weight.data(), 1e-5F, actual.view()}, 0, tokens);
    expect_same(expected, actual);
    for (const GateFunction function : {GateFunction::kSilu, GateFunction::kGelu}) {
      scalar::gated_quantize({x.data(), function, expected.view()}, 0, tokens);
      cuda::testing::gated_quantize({x.data(), function, actual.view()}, 0, tokens);
      expect_same(expected, actual);
    }
  }
}

TEST_P(CudaQuantize, NormAddEqualsScalar) {
  const auto [tokens, cols] = GetParam();
  Random random(static_cast<std::uint64_t>(cols));
  const std::vector<float> x = backend::testing::random_rows(tokens, cols, random);
  const std::vector<float> weight = backend::testing::floats_of(Values::kOutlier, cols, random);
  std::vector<float> expected = backend::testing::random_rows(tokens, cols, random);
  std::vector<float> actual = expected;
  scalar::norm_add({x.data(), weight.data(), 1e-6F, static_cast<std::int32_t>(cols), expected.data()}, 0,
                   tokens);
  cuda::testing::norm_add({x.data(), weight.data(), 1e-6F, static_cast<std::int32_t>(cols), actual.data()}, 0,
                          tokens);
  EXPECT_EQ(backend::testing::first_difference(expected, actual), -1);
}

TEST_P(CudaQuantize, ProbabilitiesEqualScalar) {
  const auto [rows, columns] = GetParam();
  const auto vocab = static_cast<std::int32_t>(columns + 1);
  Random random(static_cast<std::uint64_t>(vocab));
  std::vector<float> logits = backend::testing::random_rows(rows, vocab, random);
  for (float& logit : logits) logit *= 20.0F;
  std::vector<float> scale(static_cast<std::size_t>(rows), exact::kLog2E);
  std::vector<std::int32_t> expected(logits.size());
  std::vector<std::int32_t> actual(logits.size());
  scalar::probabilities({logits.data(), vocab, scale.data(), expected.data()}, 0, rows);
  cuda::testing::probabilities({logits.data(), vocab, scale.data(), actual.data()}, 0, rows);
  EXPECT_EQ(first_difference(expected, actual), -1);
}

}  // namespace
}  // namespace fieldprint::backend
