#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace fieldprint::weights {

/// Tensor types of GGUF that fieldprint reads; the numbers are the format's (ggml's `ggml_type`).
enum class TensorType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

/// A block of `columns` values of one row stands in `bytes` bytes.
struct TensorTypeTraits {
  std::string_view name;
  std::int64_t columns;
  std::int64_t bytes;
};

/// Null for a type that is not read.
const TensorTypeTraits* traits_of(std::uint32_t type);
const TensorTypeTraits& traits_of(TensorType type);

/// Name of any ggml type, read here or not, for messages.
std::string_view ggml_type_name(std::uint32_t type);

/// Bytes of a row of `columns` values; `columns` is a multiple of the type's block.
std::int64_t row_bytes(TensorType type, std::int64_t columns);

/// Writes the values of one row; row.size() = row_bytes(type, out.size()). Products are rounded as ggml's
/// reference dequantisers round them, so that the results are equal bit for bit.
void dequantize_row(TensorType type, std::span<const std::uint8_t> row, std::span<float> out);

}  // namespace fieldprint::weights
