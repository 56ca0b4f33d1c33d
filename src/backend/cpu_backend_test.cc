#include "backend/cpu_backend.h"

#include <gtest/gtest.h>

#include <vector>

#include "backend/kernel_testing.h"
#include "backend/scalar/linear.h"
#include "backend/scalar/quantize.h"

namespace fieldprint::backend {
namespace {

using testing::Random;

/// Rows and tokens are cut into parts of which each must find its own weights, activations and outputs.
TEST(CpuBackend, ALinearIsTheSameHoweverItIsCutForTheThreads) {
  Random random(1);
  constexpr std::int64_t kCols = 64;
  for (const ActivationFormat activation :
       {ActivationFormat::kA8, ActivationFormat::kA16, ActivationFormat::kA8G32}) {
    for (const std::int64_t rows : {16, 40, 200}) {
      for (const std::int64_t tokens : {1, 31, 33, 64, 100, 333}) {
        const auto w = testing::random_weight(activation, rows, kCols, false, random);
        testing::QuantStorage x(activation, tokens, kCols);
        const auto values = testing::random_rows(tokens, kCols, random);
        scalar::quantize({values.data(), x.view()}, 0, tokens);
        const std::int64_t stride = rows + 3;
        std::vector<float> expected(static_cast<std::size_t>(tokens * stride), 1.0F);
        LinearArgs args{w.view(), x.view(), static_cast<std::int32_t>(tokens), expected.data(), stride, true};
        scalar::linear(args, 0, (rows + exact::kTileRows - 1) / exact::kTileRows);
        for (const int threads : {1, 2, 5, 16}) {
          std::vector<float> actual(expected.size(), 1.0F);
          args.y = actual.data();
          make_cpu_backend(kScalarKernels, threads)->linear(args);
          EXPECT_EQ(testing::first_difference(expected, actual), -1)
              << "activation " << static_cast<int>(activation) << " rows " << rows << " tokens " << tokens
              << " threads " << threads;
        }
      }
    }
  }
}

}  // namespace
}  // namespace fieldprint::backend
