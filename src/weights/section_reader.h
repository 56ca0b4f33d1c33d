#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "weights/fpm_format.h"
#include "weights/model_file.h"

namespace fieldprint::weights {

/// "layer 3 qkv", for messages.
std::string name_of(const FpmSection& section);

/// What is said of a file that no import wrote.
Error altered(std::string_view what);

/// Takes the sections one after the other and gives each its shape. After the first that does not fit,
/// everything it gives is empty and `error` says why.
class SectionReader {
 public:
  SectionReader(std::span<const std::uint8_t> bytes, const std::vector<FpmSection>& table)
      : bytes_(bytes), table_(table) {}

  const std::optional<Error>& error() const { return error_; }
  bool at_end() const { return next_ == table_.size(); }
  bool next_is(SectionKind kind, std::int32_t layer) const;

  std::span<const std::uint8_t> raw(SectionKind kind);
  const float* floats(SectionKind kind, std::int32_t layer, std::int64_t rows, std::int64_t cols);
  const float* floats_if_present(SectionKind kind, std::int32_t layer, std::int64_t cols);
  const float* kv_scales(std::int32_t layer, std::int64_t kv_heads, std::int64_t head_dim);
  backend::RopeTable rope(SectionKind kind, std::int64_t rows, std::int64_t cols);
  backend::PackedWeight matrix(SectionKind kind, std::int32_t layer, std::int64_t rows, std::int64_t cols);
  /// Matrices of `cols` columns that have `rows` rows together.
  std::vector<backend::PackedWeight> parts(SectionKind kind, std::int32_t layer, std::int64_t rows,
                                           std::int64_t cols);

 private:
  void fail(const FpmSection& section, std::string_view what);
  const FpmSection* take(SectionKind kind, std::int32_t layer, std::uint32_t part);
  std::span<const std::uint8_t> body(const FpmSection& section) const;
  bool has_shape(const FpmSection& section, std::int64_t rows, std::int64_t cols, std::int64_t bytes);
  /// `count` floats from a byte of the section on, when all are finite.
  const float* finite(const FpmSection& section, std::int64_t from, std::int64_t count);
  backend::PackedWeight packed(const FpmSection& section, std::int64_t rows, std::int64_t cols);

  std::span<const std::uint8_t> bytes_;
  const std::vector<FpmSection>& table_;
  std::size_t next_ = 0;
  std::optional<Error> error_;
};

}  // namespace fieldprint::weights
