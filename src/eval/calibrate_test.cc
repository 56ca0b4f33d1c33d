#include "eval/calibrate.h"

#include <gtest/gtest.h>

#include <bit>
#include <nlohmann/json.hpp>

#include "eval/tiny_model_testing.h"

namespace fieldprint::eval {
namespace {

using weights::testing::Bytes;
using weights::testing::GgufBuilder;

/// A tiny model whose last norm multiplies by `weight`.
GgufBuilder with_output_norm(float weight) {
  GgufBuilder builder = weights::testing::TinyModel{}.builder();
  Bytes bytes;
  for (std::int64_t i = 0; i < weights::testing::TinyModel::kDim; ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(weight);
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<std::uint8_t>(bits >> shift));
  }
  builder.tensor("output_norm.weight", {weights::testing::TinyModel::kDim}, 0, bytes);
  return builder;
}

TEST(Calibrate, AModelWhoseLogitsOverflowIsRefusedAndLeavesNoFile) {
  for (const float weight : {1e38F, 3e38F}) {
    const testing::TinyFolder folder(with_output_norm(weight));
    const auto file = folder.import();
    ASSERT_FALSE(file.ok()) << weight;
    EXPECT_EQ(file.error().kind, ErrorKind::kCaller);
    EXPECT_NE(file.error().message.find("overflows on plain text"), std::string::npos)
        << file.error().message;
    EXPECT_FALSE(std::filesystem::exists(folder.model_path()));
  }
}

TEST(Calibrate, AModelWhoseLogitsAreLargeButFiniteIsImported) {
  const testing::TinyFolder folder(with_output_norm(1e6F));
  const auto file = folder.import();
  ASSERT_TRUE(file.ok()) << file.error().message;
  const auto manifest = nlohmann::json::parse((*file)->manifest());
  EXPECT_TRUE(manifest["roles"]["output"]["divergence_nats_per_token"].is_number());
}

}  // namespace
}  // namespace fieldprint::eval
