#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "weights/gguf_dequant.h"
#include "weights/mapped_file.h"

namespace fieldprint::weights {

/// A tensor of a GGUF file: `rows` rows of `columns` values (ggml's ne[0] = columns, ne[1] = rows).
struct GgufTensor {
  std::string_view name;
  TensorType type = TensorType::kF32;
  int dimensions = 0;
  std::array<std::int64_t, 4> extent{1, 1, 1, 1};  ///< ggml's ne
  std::span<const std::uint8_t> data;

  std::int64_t columns() const { return extent[0]; }
  std::int64_t rows() const { return extent[1] * extent[2] * extent[3]; }
  std::span<const std::uint8_t> row(std::int64_t index) const {
    const auto bytes = static_cast<std::size_t>(row_bytes(type, columns()));
    return data.subspan(static_cast<std::size_t>(index) * bytes, bytes);
  }
};

/// A GGUF file of version 2 or 3, little endian (specification: ggml, docs/gguf.md). Every offset, count and
/// length is checked before use; errors name the offset, the key or the tensor. Views stay valid as long as
/// the bytes do.
class Gguf {
 public:
  /// Reads the directory of a file that is held in memory or mapped.
  static Result<Gguf> parse(std::span<const std::uint8_t> bytes);

  const std::map<std::string_view, GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* find_tensor(std::string_view name) const;

  bool has(std::string_view key) const { return values_.contains(key); }
  /// The value of a key; an error names a key that is missing or of another type. `integer` takes every
  /// integer type that fits in int64, `real` both float types and integers.
  Result<std::int64_t> integer(std::string_view key) const;
  Result<double> real(std::string_view key) const;
  Result<bool> boolean(std::string_view key) const;
  Result<std::string_view> string(std::string_view key) const;
  Result<std::vector<float>> reals(std::string_view key) const;
  Result<std::vector<std::int64_t>> integers(std::string_view key) const;
  /// Calls `visit` with each string of an array, in order, until it returns false.
  Status strings(std::string_view key, const std::function<bool(std::string_view)>& visit) const;
  /// Elements of an array.
  Result<std::int64_t> length(std::string_view key) const;

 private:
  friend class GgufParser;
  struct Value {
    std::uint32_t type = 0;  ///< of the value, or of the elements of an array
    bool is_array = false;
    std::int64_t count = 1;
    std::span<const std::uint8_t> bytes;  ///< elements as the file holds them
  };
  Result<const Value*> find(std::string_view key) const;

  std::map<std::string_view, Value> values_;
  std::map<std::string_view, GgufTensor> tensors_;
};

/// A name from a file, fit for a message: control and non-ASCII bytes as '?', at most 80 bytes.
std::string printable(std::string_view text);

/// A mapped GGUF file.
struct GgufFile {
  std::unique_ptr<MappedFile> file;
  Gguf gguf;

  static Result<GgufFile> open(const std::string& path);
};

}  // namespace fieldprint::weights
