#include "weights/section_reader.h"

#include <string>

#include "exact/format.h"
#include "weights/fpm_reader.h"
#include "weights/kv_scales.h"

namespace fieldprint::weights {

using backend::ActivationFormat;
using backend::LinearFormat;
using backend::PackedWeight;
using backend::RopeTable;

std::string name_of(const FpmSection& section) {
  return section_name(section.kind, section.layer, section.part);
}

Error altered(std::string_view what) {
  return caller_error(fmt::format("the model file is altered or damaged: {}; import the model again", what));
}

bool SectionReader::next_is(SectionKind kind, std::int32_t layer) const {
  return !error_ && !at_end() && table_[next_].kind == kind && table_[next_].layer == layer;
}

std::span<const std::uint8_t> SectionReader::raw(SectionKind kind) {
  const FpmSection* section = take(kind, -1, 0);
  return section == nullptr ? std::span<const std::uint8_t>() : body(*section);
}

const float* SectionReader::floats(SectionKind kind, std::int32_t layer, std::int64_t rows,
                                   std::int64_t cols) {
  const FpmSection* section = take(kind, layer, 0);
  if (section == nullptr || !has_shape(*section, rows, cols, 4 * rows * cols)) return nullptr;
  return finite(*section, 0, rows * cols);
}

const float* SectionReader::floats_if_present(SectionKind kind, std::int32_t layer, std::int64_t cols) {
  return next_is(kind, layer) ? floats(kind, layer, 1, cols) : nullptr;
}

const float* SectionReader::kv_scales(std::int32_t layer, std::int64_t kv_heads, std::int64_t head_dim) {
  const FpmSection* section = take(SectionKind::kKvScales, layer, 0);
  const std::int64_t cols = kv_scale_columns(head_dim);
  if (section == nullptr || !has_shape(*section, kv_heads, cols, 4 * kv_heads * cols)) return nullptr;
  const float* const values = finite(*section, 0, kv_heads * cols);
  if (values == nullptr) return nullptr;
  if (!kv_scales_fit({values, static_cast<std::size_t>(kv_heads * cols)}, kv_heads, head_dim)) {
    fail(*section, "holds a scale that is not positive, too small or too large");
    return nullptr;
  }
  return values;
}

RopeTable SectionReader::rope(SectionKind kind, std::int64_t rows, std::int64_t cols) {
  const FpmSection* section = take(kind, -1, 0);
  const std::int64_t values = 2 * (rows + exact::kRopeLow) * cols;
  if (section == nullptr || !has_shape(*section, rows, cols, 4 * values)) return {};
  const float* const high = finite(*section, 0, values);
  if (high == nullptr) return {};
  const float* const low = high + 2 * rows * cols;
  return {.high_cos = high,
          .high_sin = high + rows * cols,
          .low_cos = low,
          .low_sin = low + exact::kRopeLow * cols};
}

PackedWeight SectionReader::matrix(SectionKind kind, std::int32_t layer, std::int64_t rows,
                                   std::int64_t cols) {
  const FpmSection* section = take(kind, layer, 0);
  return section == nullptr ? PackedWeight{} : packed(*section, rows, cols);
}

std::vector<PackedWeight> SectionReader::parts(SectionKind kind, std::int32_t layer, std::int64_t rows,
                                               std::int64_t cols) {
  std::vector<PackedWeight> out;
  std::int64_t left = rows;
  for (std::uint32_t part = 0; left > 0 && !error_; ++part) {
    const FpmSection* section = take(kind, layer, part);
    if (section == nullptr) break;
    if (section->rows < 1 || section->rows > left) {
      fail(*section, "has a wrong number of rows");
      break;
    }
    left -= section->rows;
    out.push_back(packed(*section, section->rows, cols));
  }
  return out;
}

void SectionReader::fail(const FpmSection& section, std::string_view what) {
  if (!error_) error_ = altered(fmt::format("section {} {}", name_of(section), what));
}

const FpmSection* SectionReader::take(SectionKind kind, std::int32_t layer, std::uint32_t part) {
  if (error_) return nullptr;
  if (at_end() || table_[next_].kind != kind || table_[next_].layer != layer || table_[next_].part != part) {
    error_ = altered(fmt::format("section {} ({}) is missing", next_, section_name(kind, layer, part)));
    return nullptr;
  }
  const FpmSection& section = table_[next_++];
  if (section.reserved != 0 || (!is_matrix(kind) && (section.format != 0 || section.activation != 0))) {
    fail(section, "has reserved bytes that are not zero");
    return nullptr;
  }
  return &section;
}

std::span<const std::uint8_t> SectionReader::body(const FpmSection& section) const {
  return bytes_.subspan(section.offset, section.bytes);
}

bool SectionReader::has_shape(const FpmSection& section, std::int64_t rows, std::int64_t cols,
                              std::int64_t bytes) {
  const bool good =
      section.rows == rows && section.cols == cols && section.bytes == static_cast<std::uint64_t>(bytes);
  if (!good) fail(section, fmt::format("is not [{}][{}] in {} bytes", rows, cols, bytes));
  return good;
}

const float* SectionReader::finite(const FpmSection& section, std::int64_t from, std::int64_t count) {
  const auto* const values = static_cast<const float*>(static_cast<const void*>(body(section).data() + from));
  for (std::int64_t i = 0; i < count; ++i) {
    if (!(values[i] >= -exact::kMaxFloat && values[i] <= exact::kMaxFloat)) {
      fail(section, "holds a value that is not finite");
      return nullptr;
    }
  }
  return values;
}

PackedWeight SectionReader::packed(const FpmSection& section, std::int64_t rows, std::int64_t cols) {
  const auto activation = static_cast<ActivationFormat>(section.activation);
  const bool w8r = section.format == static_cast<std::uint8_t>(LinearFormat::kW8R) &&
                   (activation == ActivationFormat::kA8 || activation == ActivationFormat::kA16);
  const bool w4 = section.format == static_cast<std::uint8_t>(LinearFormat::kW4G32) &&
                  activation == ActivationFormat::kA8G32;
  if (!w8r && !w4) {
    fail(section,
         fmt::format("has weight format {} with activation format {}", section.format, section.activation));
    return {};
  }
  const auto format = static_cast<LinearFormat>(section.format);
  if (!has_shape(section, rows, cols, matrix_bytes(format, rows, cols))) return {};
  PackedWeight out{.format = format,
                   .activation = activation,
                   .rows = section.rows,
                   .cols = section.cols,
                   .data = body(section).data(),
                   .row_scale = nullptr};
  if (w8r) out.row_scale = finite(section, padded_rows(rows) * cols, padded_rows(rows));
  return out;
}

}  // namespace fieldprint::weights
