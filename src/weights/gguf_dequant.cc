#include "weights/gguf_dequant.h"

#include <array>
#include <cstring>

#include "base/check.h"
#include "exact/arith.h"

// Block layouts after ggml's quantisation formats (ggml/src/ggml-common.h, "block_q4_0" to "block_q6_K").
namespace fieldprint::weights {
namespace {

constexpr std::array<std::string_view, 31> kGgmlNames = {
    "F32",   "F16",    "Q4_0", "Q4_1", "Q4_2", "Q4_3",    "Q5_0",   "Q5_1",    "Q8_0",  "Q8_1",   "Q2_K",
    "Q3_K",  "Q4_K",   "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S",
    "IQ2_S", "IQ4_XS", "I8",   "I16",  "I32",  "I64",     "F64",    "IQ1_M",   "BF16"};

constexpr std::int64_t kBlock = 32;
constexpr std::int64_t kSuperBlock = 256;

std::uint16_t load_u16(const std::uint8_t* p) { return static_cast<std::uint16_t>(p[0] | (p[1] << 8)); }
std::uint32_t load_u32(const std::uint8_t* p) {
  return static_cast<std::uint32_t>(load_u16(p)) | (static_cast<std::uint32_t>(load_u16(p + 2)) << 16);
}
float load_f16(const std::uint8_t* p) { return exact::from_f16(load_u16(p)); }
int signed_byte(std::uint8_t byte) { return static_cast<std::int8_t>(byte); }

// Two halves of a block of 32: column j in the low nibble of byte j, column 16 + j in its high nibble.
void q4_0_block(const std::uint8_t* p, float* out) {
  const float d = load_f16(p);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>((p[2 + j] & 15) - 8) * d;
    out[j + 16] = static_cast<float>((p[2 + j] >> 4) - 8) * d;
  }
}

void q4_1_block(const std::uint8_t* p, float* out) {
  const float d = load_f16(p);
  const float m = load_f16(p + 2);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(p[4 + j] & 15) * d + m;
    out[j + 16] = static_cast<float>(p[4 + j] >> 4) * d + m;
  }
}

// The fifth bit of column j is bit j of a 32-bit word before the nibbles.
int fifth_bit(std::uint32_t high, int column) { return static_cast<int>((high >> column) & 1U) << 4; }

void q5_0_block(const std::uint8_t* p, float* out) {
  const float d = load_f16(p);
  const std::uint32_t high = load_u32(p + 2);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(((p[6 + j] & 15) | fifth_bit(high, j)) - 16) * d;
    out[j + 16] = static_cast<float>(((p[6 + j] >> 4) | fifth_bit(high, j + 16)) - 16) * d;
  }
}

void q5_1_block(const std::uint8_t* p, float* out) {
  const float d = load_f16(p);
  const float m = load_f16(p + 2);
  const std::uint32_t high = load_u32(p + 4);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>((p[8 + j] & 15) | fifth_bit(high, j)) * d + m;
    out[j + 16] = static_cast<float>((p[8 + j] >> 4) | fifth_bit(high, j + 16)) * d + m;
  }
}

void q8_0_block(const std::uint8_t* p, float* out) {
  const float d = load_f16(p);
  for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(signed_byte(p[2 + j])) * d;
}

struct ScaleAndMin {
  int scale;
  int min;
};

/// Sub-block j (0..7) of the 12 bytes that hold eight 6-bit scales and eight 6-bit minima.
ScaleAndMin k_scale_and_min(const std::uint8_t* p, int j) {
  if (j < 4) return {p[j] & 63, p[j + 4] & 63};
  return {(p[j + 4] & 15) | ((p[j - 4] >> 6) << 4), (p[j + 4] >> 4) | ((p[j] >> 6) << 4)};
}

// Each 32 bytes of nibbles hold two sub-blocks of 32 columns: the low nibbles, then the high ones.
void q4_k_block(const std::uint8_t* p, float* out) {
  const float d = load_f16(p);
  const float dmin = load_f16(p + 2);
  for (int sub = 0; sub < 8; ++sub) {
    const auto [scale, min] = k_scale_and_min(p + 4, sub);
    const float factor = d * static_cast<float>(scale);
    const float offset = dmin * static_cast<float>(min);
    const std::uint8_t* nibbles = p + 16 + 32 * (sub / 2);
    for (int j = 0; j < 32; ++j) {
      const int q = sub % 2 == 0 ? nibbles[j] & 15 : nibbles[j] >> 4;
      out[32 * sub + j] = factor * static_cast<float>(q) - offset;
    }
  }
}

void q5_k_block(const std::uint8_t* p, float* out) {
  const float d = load_f16(p);
  const float dmin = load_f16(p + 2);
  const std::uint8_t* high = p + 16;
  for (int sub = 0; sub < 8; ++sub) {
    const auto [scale, min] = k_scale_and_min(p + 4, sub);
    const float factor = d * static_cast<float>(scale);
    const float offset = dmin * static_cast<float>(min);
    const std::uint8_t* nibbles = p + 48 + 32 * (sub / 2);
    for (int j = 0; j < 32; ++j) {
      const int low = sub % 2 == 0 ? nibbles[j] & 15 : nibbles[j] >> 4;
      const int q = low | (((high[j] >> sub) & 1) << 4);
      out[32 * sub + j] = factor * static_cast<float>(q) - offset;
    }
  }
}

// Halves of 128 columns. Quarter k (32 columns) of a half has its low four bits in nibbles [32·(k%2), +32),
// low or high nibble by k/2, and its high two bits in bits 2k, 2k+1 of 32 further bytes; a scale for each 16
// columns.
void q6_k_block(const std::uint8_t* p, float* out) {
  const float d = load_f16(p + 208);
  for (int half = 0; half < 2; ++half) {
    const std::uint8_t* low = p + 64 * half;
    const std::uint8_t* high = p + 128 + 32 * half;
    const std::uint8_t* scales = p + 192 + 8 * half;
    for (int c = 0; c < 128; ++c) {
      const int quarter = c / 32;
      const int j = c % 32;
      const std::uint8_t nibbles = low[32 * (quarter % 2) + j];
      const int four = quarter < 2 ? nibbles & 15 : nibbles >> 4;
      const int q = (four | (((high[j] >> (2 * quarter)) & 3) << 4)) - 32;
      out[128 * half + c] = d * static_cast<float>(signed_byte(scales[c / 16])) * static_cast<float>(q);
    }
  }
}

void f32_value(const std::uint8_t* p, float* out) { *out = exact::bits_to_float(load_u32(p)); }
void f16_value(const std::uint8_t* p, float* out) { *out = load_f16(p); }
void bf16_value(const std::uint8_t* p, float* out) { *out = exact::from_bf16(load_u16(p)); }

using DequantizeBlock = void (*)(const std::uint8_t*, float*);

struct Format {
  TensorType type;
  TensorTypeTraits traits;
  DequantizeBlock dequantize;
};

constexpr std::array<Format, 11> kFormats = {{
    {TensorType::kF32, {"F32", 1, 4}, f32_value},
    {TensorType::kF16, {"F16", 1, 2}, f16_value},
    {TensorType::kBF16, {"BF16", 1, 2}, bf16_value},
    {TensorType::kQ4_0, {"Q4_0", kBlock, 18}, q4_0_block},
    {TensorType::kQ4_1, {"Q4_1", kBlock, 20}, q4_1_block},
    {TensorType::kQ5_0, {"Q5_0", kBlock, 22}, q5_0_block},
    {TensorType::kQ5_1, {"Q5_1", kBlock, 24}, q5_1_block},
    {TensorType::kQ8_0, {"Q8_0", kBlock, 34}, q8_0_block},
    {TensorType::kQ4_K, {"Q4_K", kSuperBlock, 144}, q4_k_block},
    {TensorType::kQ5_K, {"Q5_K", kSuperBlock, 176}, q5_k_block},
    {TensorType::kQ6_K, {"Q6_K", kSuperBlock, 210}, q6_k_block},
}};

const Format* find_format(std::uint32_t type) {
  for (const Format& format : kFormats) {
    if (static_cast<std::uint32_t>(format.type) == type) return &format;
  }
  return nullptr;
}

const Format& format_of(TensorType type) {
  const Format* const format = find_format(static_cast<std::uint32_t>(type));
  CHECK(format != nullptr, "tensor type {}", static_cast<std::uint32_t>(type));
  return *format;
}

}  // namespace

const TensorTypeTraits* traits_of(std::uint32_t type) {
  const Format* const format = find_format(type);
  return format == nullptr ? nullptr : &format->traits;
}

const TensorTypeTraits& traits_of(TensorType type) { return format_of(type).traits; }

std::string_view ggml_type_name(std::uint32_t type) {
  return type < kGgmlNames.size() ? kGgmlNames[type] : std::string_view("unknown");
}

std::int64_t row_bytes(TensorType type, std::int64_t columns) {
  const TensorTypeTraits& traits = traits_of(type);
  CHECK(columns >= 0 && columns % traits.columns == 0, "{} columns of {}", columns, traits.name);
  return columns / traits.columns * traits.bytes;
}

void dequantize_row(TensorType type, std::span<const std::uint8_t> row, std::span<float> out) {
  const Format& format = format_of(type);
  const auto columns = static_cast<std::int64_t>(out.size());
  CHECK(static_cast<std::int64_t>(row.size()) == row_bytes(type, columns));
  const std::uint8_t* in = row.data();
  for (std::int64_t c = 0; c < columns; c += format.traits.columns, in += format.traits.bytes) {
    format.dequantize(in, out.data() + c);
  }
}

}  // namespace fieldprint::weights
