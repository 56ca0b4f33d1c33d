#include "weights/pack.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "backend/scalar/linear.h"
#include "exact/arith.h"
#include "weights/fpm_reader.h"
#include "weights/gguf_test_builder.h"

namespace fieldprint::weights {
namespace {

using backend::ActivationFormat;
using backend::LinearFormat;
using backend::PackedWeight;
using testing::Bytes;
using testing::noise_tensor;

GgufTensor tensor_of(TensorType type, std::int64_t rows, std::int64_t columns, const Bytes& data) {
  return {.name = "w", .type = type, .dimensions = 2, .extent = {columns, rows, 1, 1}, .data = data};
}

/// A packed matrix and the memory behind it.
struct Packed {
  std::vector<std::uint8_t> data;
  std::vector<float> row_scale;
  PackedWeight weight;
};

Packed pack_all(const MatrixStack& stack, LinearFormat format) {
  TilePacker packer(stack, format);
  Packed out;
  for (std::int64_t tile = 0; tile < packer.tiles(); ++tile) {
    const auto bytes = packer.pack(tile);
    EXPECT_TRUE(bytes.ok());
    out.data.insert(out.data.end(), bytes->begin(), bytes->end());
  }
  out.row_scale = packer.row_scales();
  out.weight = {.format = format,
                .activation = format == LinearFormat::kW8R ? ActivationFormat::kA8 : ActivationFormat::kA8G32,
                .rows = static_cast<std::int32_t>(packer.rows()),
                .cols = static_cast<std::int32_t>(packer.columns()),
                .data = out.data.data(),
                .row_scale = out.row_scale.data()};
  EXPECT_EQ(static_cast<std::int64_t>(out.data.size() + 4 * out.row_scale.size()),
            matrix_bytes(format, packer.rows(), packer.columns()));
  return out;
}

std::vector<float> dequantised(const LogicalMatrix& matrix, std::int64_t row) {
  std::vector<float> out(static_cast<std::size_t>(matrix.columns()));
  dequantize_row(matrix.tensor->type, matrix.row_data(row), out);
  return out;
}

std::vector<float> unpacked(const PackedWeight& weight, std::int64_t row) {
  std::vector<float> out(static_cast<std::size_t>(weight.cols));
  unpack_row(weight, row, out);
  return out;
}

TEST(Pack, FourBitBlocksAreKeptLosslessly) {
  for (const TensorType type : {TensorType::kQ4_0, TensorType::kQ4_1}) {
    const Bytes data = noise_tensor(type, 21, 96, 3);
    const GgufTensor tensor = tensor_of(type, 21, 96, data);
    ASSERT_EQ(*packed_format(tensor), LinearFormat::kW4G32);
    const LogicalMatrix matrix{.tensor = &tensor};
    const Packed packed = pack_all({matrix}, LinearFormat::kW4G32);
    for (std::int64_t row = 0; row < 21; ++row)
      EXPECT_EQ(unpacked(packed.weight, row), dequantised(matrix, row)) << row;
  }
}

TEST(Pack, EveryFiniteQ4_0ScaleIsLosslessOrFallsBack) {
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    Bytes data(18, 0x5A);
    data[0] = static_cast<std::uint8_t>(half);
    data[1] = static_cast<std::uint8_t>(half >> 8);
    const GgufTensor tensor = tensor_of(TensorType::kQ4_0, 1, 32, data);
    const auto format = packed_format(tensor);
    const float d = exact::from_f16(static_cast<std::uint16_t>(half));
    ASSERT_EQ(format.ok(), std::isfinite(d)) << half;
    if (!format.ok()) continue;
    ASSERT_EQ(*format == LinearFormat::kW4G32, std::abs(8.0F * d) <= 65504.0F) << half;
    if (*format == LinearFormat::kW8R) continue;
    const LogicalMatrix matrix{.tensor = &tensor};
    ASSERT_EQ(unpacked(pack_all({matrix}, *format).weight, 0), dequantised(matrix, 0)) << half;
  }
}

TEST(Pack, RowsOfEightBitsAreWithinHalfAStep) {
  const Bytes data = noise_tensor(TensorType::kQ6_K, 19, 256, 5);
  const GgufTensor tensor = tensor_of(TensorType::kQ6_K, 19, 256, data);
  const LogicalMatrix matrix{.tensor = &tensor};
  const Packed packed = pack_all({matrix}, LinearFormat::kW8R);
  ASSERT_EQ(packed.row_scale.size(), 32U);
  for (std::int64_t row = 0; row < 19; ++row) {
    const auto expected = dequantised(matrix, row);
    const auto actual = unpacked(packed.weight, row);
    const float scale = packed.row_scale[static_cast<std::size_t>(row)];
    EXPECT_FLOAT_EQ(scale, exact::abs_max(expected) / 127.0F);
    for (std::size_t c = 0; c < expected.size(); ++c) EXPECT_NEAR(actual[c], expected[c], 0.50001 * scale);
  }
  for (std::size_t row = 19; row < 32; ++row) EXPECT_EQ(packed.row_scale[row], 0.0F);
}

TEST(Pack, TheBackendReadsTheSameValues) {
  for (const TensorType type : {TensorType::kQ4_1, TensorType::kQ8_0}) {
    const Bytes data = noise_tensor(type, 40, 64, 9);
    const GgufTensor tensor = tensor_of(type, 40, 64, data);
    const Packed packed = pack_all({{.tensor = &tensor}}, *packed_format(tensor));
    std::vector<std::int32_t> tokens(40);
    std::iota(tokens.begin(), tokens.end(), 0);
    std::vector<float> out(40 * 64);
    backend::scalar::embed(
        {.table = packed.weight, .tokens = tokens.data(), .scale = 1.0F, .out = out.data()}, 0, 40);
    for (std::int64_t row = 0; row < 40; ++row) {
      const auto expected = unpacked(packed.weight, row);
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), out.begin() + row * 64)) << row;
    }
  }
}

TEST(Pack, InterleavedHeadsBecomeHalfSplit) {
  const LogicalMatrix matrix{.tensor = nullptr, .order = RowOrder::kInterleaved, .head_dim = 8};
  const std::vector<std::int64_t> expected = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};
  for (std::size_t row = 0; row < expected.size(); ++row) {
    EXPECT_EQ(matrix.stored_row(static_cast<std::int64_t>(row)), expected[row]);
  }
}

TEST(Pack, StackedMatricesFollowEachOtherAcrossTiles) {
  const Bytes first = noise_tensor(TensorType::kQ4_1, 24, 32, 1);
  const Bytes second = noise_tensor(TensorType::kQ4_0, 8, 32, 2);
  const GgufTensor a = tensor_of(TensorType::kQ4_1, 24, 32, first);
  const GgufTensor b = tensor_of(TensorType::kQ4_0, 8, 32, second);
  const Packed packed = pack_all({{.tensor = &a}, {.tensor = &b}}, LinearFormat::kW4G32);
  ASSERT_EQ(packed.weight.rows, 32);
  EXPECT_EQ(unpacked(packed.weight, 23), dequantised({.tensor = &a}, 23));
  EXPECT_EQ(unpacked(packed.weight, 24), dequantised({.tensor = &b}, 0));
  EXPECT_EQ(unpacked(packed.weight, 31), dequantised({.tensor = &b}, 7));
}

TEST(Pack, ValuesThatAreNotFiniteAreNamed) {
  Bytes data = noise_tensor(TensorType::kQ8_0, 4, 32, 1);
  data[2 * 34 + 1] = 0x7C;
  data[2 * 34] = 0;
  const GgufTensor tensor = tensor_of(TensorType::kQ8_0, 4, 32, data);
  TilePacker packer({{.tensor = &tensor}}, LinearFormat::kW8R);
  const auto result = packer.pack(0);
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.error().message.find("tensor w, row 2"), std::string::npos) << result.error().message;
}

TEST(Pack, ARowOfZerosHasScaleZero) {
  const Bytes data(4 * 32, 0);
  const GgufTensor tensor = tensor_of(TensorType::kF32, 1, 32, data);
  const Packed packed = pack_all({{.tensor = &tensor}}, LinearFormat::kW8R);
  EXPECT_EQ(packed.row_scale[0], 0.0F);
  EXPECT_EQ(unpacked(packed.weight, 0), std::vector<float>(32, 0.0F));
}

}  // namespace
}  // namespace fieldprint::weights
