#include "weights/gguf_dequant.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "base/sha256.h"

namespace fieldprint::weights {
namespace {

/// 512 values of a type from bytes of a formula, with block scales 0x2400 + 0x35·k (+ 0x8111 for the second)
/// in f16.
std::vector<std::uint8_t> golden_input(TensorType type) {
  const auto& traits = traits_of(type);
  const auto blocks = static_cast<std::size_t>(512 / traits.columns);
  const auto size = static_cast<std::size_t>(traits.bytes);
  std::vector<std::uint8_t> out(blocks * size);
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = static_cast<std::uint8_t>(i * 37 + 11 + (i >> 8) * 29);
  const bool two = type == TensorType::kQ4_1 || type == TensorType::kQ5_1 || type == TensorType::kQ4_K ||
                   type == TensorType::kQ5_K;
  for (std::size_t k = 0; k < blocks; ++k) {
    std::uint8_t* block = out.data() + k * size;
    if (traits.columns == 1) {
      block[size - 1] &= 0x3F;  // keeps the value finite
      continue;
    }
    std::uint8_t* scale = block + (type == TensorType::kQ6_K ? 208 : 0);
    for (std::size_t j = 0; j < (two ? 2U : 1U); ++j) {
      const std::size_t half = 0x2400 + k * 0x35 + j * 0x8111;
      scale[2 * j] = static_cast<std::uint8_t>(half);
      scale[2 * j + 1] = static_cast<std::uint8_t>(half >> 8);
    }
  }
  return out;
}

struct Golden {
  TensorType type;
  const char* digest;              ///< SHA-256 of the 512 floats
  std::array<float, 5> at_places;  ///< columns 0, 17, 100, 300, 511
};

// Made with the Python package gguf (dequantize of gguf.quants), an implementation that is not ours.
constexpr Golden kGolden[] = {
    {TensorType::kQ4_0,
     "c89232adee50b1788624ff2a82cf2fef738392e4c4609e45949b190b5faac7c8",
     {-0x1.8p-5F, -0x1.p-6F, -0x1.27cp-6F, 0x1.197p-4F, 0x1.c6cp-5F}},
    {TensorType::kQ4_1,
     "7496987b1dd1f205152764defc2f8c30a129508ce43c9ee0830b329628c8d6bd",
     {0x1.b778p-3F, 0x1.5778p-3F, 0x1.fd08p-3F, 0x1.4414p-2F, 0x1.414p-4F}},
    {TensorType::kQ5_0,
     "92ebacc12ca23c95a0d6401a4eefcb57c6dda14c852a52db6cb71830014e5804",
     {0x1.2p-3F, 0.0F, 0x1.02c8p-3F, 0x1.197p-4F, 0x1.8de8p-2F}},
    {TensorType::kQ5_1,
     "abaf561a3133e0bb8537b9dc445421ca9bc6fcc7efd59c1f22890fa06edbeb17",
     {0x1.1bbcp-2F, 0x1.ddep-5F, 0x1.fd08p-3F, 0x1.ffb4p-2F, 0x1.84p-3F}},
    {TensorType::kQ8_0,
     "2371493b48912702e11a253f32f57ad0fb8edeaa4311b953ce2cb2eaeeb7230e",
     {0x1.54p+0F, -0x1.bp-1F, -0x1.9b47p+0F, 0x1.30e4p+1F, -0x1.c6cp+0F}},
    {TensorType::kQ4_K,
     "62734b5ea8f31ec9334f4ce637650bcadc3d917ca36b850c1c0aa70c59291c07",
     {0x1.9598cp+2F, 0x1.0263p+0F, 0x1.3621p+1F, 0x1.5b3ap+2F, 0x1.26858p+3F}},
    {TensorType::kQ5_K,
     "c901dec6041970c2e5f6c52675469ee9f05e4c4bf4c2b773c480b0a3e18ca6e4",
     {0x1.c2cc6p+3F, 0x1.0263p+0F, 0x1.27108p+2F, 0x1.f17fp+3F, 0x1.512p+2F}},
    {TensorType::kQ6_K,
     "8954cfedd628f16dfdda73aac7ee0099c7a08aab2f3f6751ff5c9649e5785364",
     {-0x1.65cp+4F, 0x1.p+3F, 0x1.3b6p+5F, -0x1.03422p+5F, -0x1.104618p+5F}},
    {TensorType::kF16,
     "e4bad921f7572cb029a33cc9ad3d81d57b4fd0b8d6f1f172419342d6ba67d9bf",
     {0x1.02cp-3F, 0x1.bd4p-9F, 0x1.3ccp-9F, 0x1.bf4p-7F, 0x1.46p+0F}},
    {TensorType::kBF16,
     "98a84ba1a1571a93a19c3c1ed70eb444bf71dfc2909b3c6954412de11944b38a",
     {0x1.16p-31F, 0x1.eap-74F, 0x1.e6p-78F, 0x1.fap-58F, 0x1.3p-5F}},
    {TensorType::kF32,
     "e42943b04a92ff5ba49ff5c5d361288df08a3ac64089de2b05e337e8fe2a0cc6",
     {0x1.aa6016p-11F, 0x1.5209bep-99F, 0x1.843bfp-49F, 0x1.7229dep-67F, 0x1.18ce84p-28F}},
};

TEST(GgufDequant, EveryTypeEqualsTheReferenceBitForBit) {
  for (const Golden& golden : kGolden) {
    SCOPED_TRACE(traits_of(golden.type).name);
    std::vector<float> out(512);
    dequantize_row(golden.type, golden_input(golden.type), out);
    constexpr std::array<std::size_t, 5> kPlaces = {0, 17, 100, 300, 511};
    for (std::size_t i = 0; i < kPlaces.size(); ++i)
      EXPECT_EQ(out[kPlaces[i]], golden.at_places[i]) << kPlaces[i];
    const std::span<const std::uint8_t> bytes(reinterpret_cast<const std::uint8_t*>(out.data()),
                                              4 * out.size());
    EXPECT_EQ(to_hex(sha256(bytes)), golden.digest);
  }
}

TEST(GgufDequant, RowBytesFollowTheBlocks) {
  EXPECT_EQ(row_bytes(TensorType::kF32, 7), 28);
  EXPECT_EQ(row_bytes(TensorType::kQ4_0, 64), 36);
  EXPECT_EQ(row_bytes(TensorType::kQ6_K, 512), 420);
}

TEST(GgufDequant, UnreadTypesAreNamed) {
  EXPECT_EQ(traits_of(10U), nullptr);
  EXPECT_EQ(ggml_type_name(10), "Q2_K");
  EXPECT_EQ(ggml_type_name(23), "IQ4_XS");
  EXPECT_EQ(ggml_type_name(4000000000U), "unknown");
}

}  // namespace
}  // namespace fieldprint::weights
