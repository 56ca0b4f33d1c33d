#include "backend/avx2/quantize.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "backend/avx512/quantize.h"
#include "backend/kernel_testing.h"
#include "backend/scalar/quantize.h"
#if FIELDPRINT_HAS_CUDA
#include "backend/cuda/row_testing.h"
#endif

namespace fieldprint::backend {
namespace {

using testing::pick;
using testing::QuantStorage;
using testing::Random;
using testing::Values;

struct QuantizeKernels {
  const char* name;
  bool (*supported)();
  void (*norm_quantize)(const NormQuantizeArgs&, std::int64_t, std::int64_t);
  void (*norm_add)(const NormAddArgs&, std::int64_t, std::int64_t);
  void (*quantize)(const QuantizeArgs&, std::int64_t, std::int64_t);
  void (*gated_quantize)(const GatedQuantizeArgs&, std::int64_t, std::int64_t);
  void (*probabilities)(const ProbabilitiesArgs&, std::int64_t, std::int64_t);
};

class QuantizeTest : public ::testing::TestWithParam<QuantizeKernels> {
 protected:
  void SetUp() override {
    if (!GetParam().supported()) GTEST_SKIP() << "this machine lacks " << GetParam().name;
  }
};

constexpr ActivationFormat kFormats[] = {ActivationFormat::kA8, ActivationFormat::kA16,
                                         ActivationFormat::kA8G32};

std::vector<std::uint32_t> bits(const std::vector<float>& x) {
  std::vector<std::uint32_t> out;
  out.reserve(x.size());
  for (const float value : x) out.push_back(std::bit_cast<std::uint32_t>(value));
  return out;
}

/// Quantised rows have one NaN only, so here even that is compared by its bits.
void expect_same(const QuantStorage& expected, const QuantStorage& actual) {
  EXPECT_EQ(expected.q, actual.q);
  EXPECT_EQ(bits(expected.scale), bits(actual.scale));
  EXPECT_EQ(expected.row_sum, actual.row_sum);
  EXPECT_EQ(bits(expected.block_sum), bits(actual.block_sum));
  EXPECT_EQ(expected.non_finite, actual.non_finite);
}

TEST_P(QuantizeTest, QuantizeEqualsScalar) {
  Random random(1);
  for (int round = 0; round < 200; ++round) {
    for (const ActivationFormat format : kFormats) {
      const std::int64_t cols = 32 * pick(random, 1, 70);
      const std::int64_t tokens = pick(random, 1, 9);
      const std::vector<float> x = testing::random_rows(tokens, cols, random);
      QuantStorage expected(format, tokens, cols);
      QuantStorage actual(format, tokens, cols);
      scalar::quantize({x.data(), expected.view()}, 1, tokens);
      GetParam().quantize({x.data(), actual.view()}, 1, tokens);
      expect_same(expected, actual);
    }
  }
}

TEST_P(QuantizeTest, NormQuantizeEqualsScalar) {
  Random random(2);
  for (int round = 0; round < 200; ++round) {
    for (const ActivationFormat format : kFormats) {
      const std::int64_t cols = 32 * pick(random, 1, 70);
      const std::int64_t tokens = pick(random, 1, 9);
      const std::vector<float> x = testing::random_rows(tokens, cols, random);
      const auto kind = random() % 8 == 0 ? Values::kHuge : Values::kOrdinary;
      const std::vector<float> weight = testing::floats_of(kind, cols, random);
      std::vector<std::int32_t> rows(static_cast<std::size_t>(tokens));
      for (std::int32_t& row : rows) row = static_cast<std::int32_t>(pick(random, 0, tokens - 1));
      const float epsilon = random() % 4 == 0 ? 0.0F : 1e-6F;
      QuantStorage expected(format, tokens, cols);
      QuantStorage actual(format, tokens, cols);
      NormQuantizeArgs args{x.data(), random() % 2 == 0 ? rows.data() : nullptr, weight.data(), epsilon,
                            expected.view()};
      scalar::norm_quantize(args, 0, tokens);
      args.out = actual.view();
      GetParam().norm_quantize(args, 0, tokens);
      expect_same(expected, actual);
    }
  }
}

TEST_P(QuantizeTest, NormAddEqualsScalar) {
  Random random(3);
  for (int round = 0; round < 200; ++round) {
    const std::int64_t cols = 32 * pick(random, 1, 70);
    const std::int64_t tokens = pick(random, 1, 9);
    const std::vector<float> x = testing::random_rows(tokens, cols, random);
    const std::vector<float> weight = testing::floats_of(Values::kOutlier, cols, random);
    std::vector<float> expected = testing::random_rows(tokens, cols, random);
    std::vector<float> actual = expected;
    NormAddArgs args{x.data(), weight.data(), 1e-6F, static_cast<std::int32_t>(cols), expected.data()};
    scalar::norm_add(args, 0, tokens);
    args.residual = actual.data();
    GetParam().norm_add(args, 0, tokens);
    EXPECT_EQ(testing::first_difference(expected, actual), -1) << "cols " << cols;
  }
}

/// Finite numbers whose squares are not: the row must not pass for one of zeros.
TEST_P(QuantizeTest, RowsWhoseSquaresOverflowAreFlagged) {
  constexpr std::int64_t kCols = 64;
  const std::vector<float> x(2 * kCols, 1e30F);
  const std::vector<float> weight(kCols, 1.0F);
  for (const ActivationFormat format : kFormats) {
    for (const auto kernel : {scalar::norm_quantize, GetParam().norm_quantize}) {
      QuantStorage rows(format, 2, kCols);
      kernel({x.data(), nullptr, weight.data(), 1e-6F, rows.view()}, 0, 2);
      EXPECT_EQ(rows.non_finite, (std::vector<std::int32_t>{1, 1}));
    }
  }
  for (const auto kernel : {scalar::norm_add, GetParam().norm_add}) {
    std::vector<float> residual(kCols, 1.0F);
    kernel({x.data(), weight.data(), 1e-6F, kCols, residual.data()}, 0, 1);
    for (const float value : residual) EXPECT_TRUE(std::isnan(value));
  }
}

TEST_P(QuantizeTest, GatedQuantizeEqualsScalar) {
  Random random(4);
  for (int round = 0; round < 150; ++round) {
    for (const ActivationFormat format : kFormats) {
      for (const GateFunction function : {GateFunction::kSilu, GateFunction::kGelu}) {
        const std::int64_t cols = 32 * pick(random, 1, 70);
        const std::int64_t tokens = pick(random, 1, 5);
        // Gate and up of a token are one row of kinds each.
        std::vector<float> gate_up = testing::random_rows(2 * tokens, cols, random);
        const float spread = random() % 2 == 0 ? 1.0F : 30.0F;
        for (float& value : gate_up) value *= spread;
        QuantStorage expected(format, tokens, cols);
        QuantStorage actual(format, tokens, cols);
        scalar::gated_quantize({gate_up.data(), function, expected.view()}, 0, tokens);
        GetParam().gated_quantize({gate_up.data(), function, actual.view()}, 0, tokens);
        expect_same(expected, actual);
      }
    }
  }
}

TEST_P(QuantizeTest, WidestRowEqualsScalar) {
  Random random(5);
  constexpr std::int64_t kCols = 65536;
  const std::vector<float> gate_up = testing::floats_of(Values::kOrdinary, 2 * kCols, random);
  for (const ActivationFormat format : kFormats) {
    QuantStorage expected(format, 1, kCols);
    QuantStorage actual(format, 1, kCols);
    scalar::gated_quantize({gate_up.data(), GateFunction::kGelu, expected.view()}, 0, 1);
    GetParam().gated_quantize({gate_up.data(), GateFunction::kGelu, actual.view()}, 0, 1);
    expect_same(expected, actual);
  }
}

TEST_P(QuantizeTest, ProbabilitiesEqualScalar) {
  Random random(6);
  for (int round = 0; round < 400; ++round) {
    const std::int64_t vocab = pick(random, 1, 300);
    const std::int64_t rows = pick(random, 1, 3);
    std::vector<float> logits;
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto kind = static_cast<Values>(random() % testing::kValueKinds);
      const float spread = random() % 2 == 0 ? 20.0F : 1.0F;
      for (std::int64_t i = 0; i < vocab; ++i) {
        logits.push_back(testing::value_of(kind, random) * spread);
      }
      if (random() % 8 == 0) logits[static_cast<std::size_t>(r * vocab)] = std::nanf("");
    }
    std::vector<float> scale(static_cast<std::size_t>(rows));
    for (float& value : scale)
      value = random() % 8 == 0 ? 1e30F : std::abs(testing::unit_float(random)) * 3.0F;
    std::vector<std::int32_t> expected(static_cast<std::size_t>(rows * vocab), 7);
    std::vector<std::int32_t> actual = expected;
    ProbabilitiesArgs args{logits.data(), static_cast<std::int32_t>(vocab), scale.data(), expected.data()};
    scalar::probabilities(args, 0, rows);
    args.p = actual.data();
    GetParam().probabilities(args, 0, rows);
    EXPECT_EQ(expected, actual) << "vocab " << vocab;
  }
}

/// A NaN whose payload, shifted into the exponent, would make exp2 a number again.
TEST_P(QuantizeTest, EveryNanLogitHasProbabilityZero) {
  for (std::uint32_t payload = 0; payload < 512; ++payload) {
    std::vector<float> logits(37, -1.0F);
    logits[0] = 0.0F;
    logits[20] = std::bit_cast<float>(0x7FC00000U | payload);
    logits[36] = std::bit_cast<float>(0xFFC00000U | payload);
    const float scale = 1.0F;
    for (const auto kernel : {scalar::probabilities, GetParam().probabilities}) {
      std::vector<std::int32_t> p(37, 7);
      kernel({logits.data(), 37, &scale, p.data()}, 0, 1);
      EXPECT_EQ(p[0], 1 << 30);
      EXPECT_EQ(p[1], 1 << 29);
      EXPECT_EQ(p[20], 0) << payload;
      EXPECT_EQ(p[36], 0) << payload;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Isa, QuantizeTest,
    ::testing::Values(QuantizeKernels{"avx2", testing::cpu_has_avx2, avx2::norm_quantize, avx2::norm_add,
                                      avx2::quantize, avx2::gated_quantize, avx2::probabilities},
                      QuantizeKernels{"avx512", testing::cpu_has_avx512, avx512::norm_quantize,
                                      avx512::norm_add, avx512::quantize, avx512::gated_quantize,
                                      avx512::probabilities}),
    [](const auto& kernels) { return std::string(kernels.param.name); });

#if FIELDPRINT_HAS_CUDA
INSTANTIATE_TEST_SUITE_P(Device, QuantizeTest,
                         ::testing::Values(QuantizeKernels{
                             "cuda", cuda::testing::has_device, cuda::testing::norm_quantize,
                             cuda::testing::norm_add, cuda::testing::quantize, cuda::testing::gated_quantize,
                             cuda::testing::probabilities}),
                         [](const auto& kernels) { return std::string(kernels.param.name); });
#endif

}  // namespace
}  // namespace fieldprint::backend
