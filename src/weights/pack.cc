#include "weights/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "exact/arith.h"

namespace fieldprint::weights {
namespace {

using backend::LinearFormat;
using backend::PackedWeight;
using exact::kBlockCols;
using exact::kLaneCols;
using exact::kTileRows;
using exact::kW4TileBlockBytes;

constexpr std::int64_t kQ40Bytes = 18;
constexpr std::int64_t kQ41Bytes = 20;
constexpr int kW4CoefficientsAt = kTileRows * kBlockCols / 2;

std::uint16_t load_u16(const std::uint8_t* p) { return static_cast<std::uint16_t>(p[0] | (p[1] << 8)); }
void store_u16(std::uint8_t* p, std::uint16_t value) {
  p[0] = static_cast<std::uint8_t>(value);
  p[1] = static_cast<std::uint8_t>(value >> 8);
}

bool is_finite_f16(std::uint16_t half) { return (half & 0x7C00U) != 0x7C00U; }

/// −8·h, exact: a normal number's exponent grows by three, a subnormal one is renormalised. `h` must allow
/// it.
std::uint16_t minus_eight_times(std::uint16_t half) {
  std::uint32_t magnitude = half & 0x7FFFU;
  const std::uint32_t sign = (half & 0x8000U) ^ 0x8000U;
  for (int doubling = 0; doubling < 3; ++doubling) {
    // Doubling a subnormal's bits carries into the exponent just where it becomes normal.
    magnitude = magnitude < 0x0400U ? magnitude << 1 : magnitude + 0x0400U;
  }
  return static_cast<std::uint16_t>(sign | magnitude);
}

/// The largest magnitude whose eightfold is finite in f16: exponent field 27.
bool eightfold_fits(std::uint16_t half) { return (half & 0x7FFFU) < 0x7000U; }

/// Position of (row, column) in a kW8R tile.
std::size_t w8r_at(int row, std::int64_t column) {
  return static_cast<std::size_t>(column / kLaneCols * kTileRows * kLaneCols + row * kLaneCols +
                                  column % kLaneCols);
}

/// Position in a kW4G32 block of the byte that holds columns j and 16 + j of a row.
std::size_t w4_at(int row, int j) {
  return static_cast<std::size_t>(j / kLaneCols * kTileRows * kLaneCols + row * kLaneCols + j % kLaneCols);
}

}  // namespace

std::int64_t LogicalMatrix::stored_row(std::int64_t row) const {
  if (order == RowOrder::kPlain) return row;
  const std::int64_t head = row / head_dim * head_dim;
  const std::int64_t half = head_dim / 2;
  const std::int64_t i = row - head;
  return head + (i < half ? 2 * i : 2 * (i - half) + 1);
}

Result<LinearFormat> packed_format(const GgufTensor& tensor) {
  if (tensor.type != TensorType::kQ4_0 && tensor.type != TensorType::kQ4_1) return LinearFormat::kW8R;
  const bool has_minimum = tensor.type == TensorType::kQ4_1;
  const std::size_t stride = has_minimum ? kQ41Bytes : kQ40Bytes;
  bool lossless = true;
  for (std::size_t at = 0; at < tensor.data.size(); at += stride) {
    const std::uint8_t* block = tensor.data.data() + at;
    const std::uint16_t d = load_u16(block);
    if (!is_finite_f16(d) || (has_minimum && !is_finite_f16(load_u16(block + 2)))) {
      return caller_error(fmt::format(
          "tensor {} holds a scale that is not finite; fetch or convert the model again", tensor.name));
    }
    if (!has_minimum) lossless = lossless && eightfold_fits(d);
  }
  return lossless ? LinearFormat::kW4G32 : LinearFormat::kW8R;
}

TilePacker::TilePacker(MatrixStack stack, LinearFormat format) : stack_(std::move(stack)), format_(format) {
  CHECK(!stack_.empty());
  columns_ = stack_.front().columns();
  CHECK(columns_ % kBlockCols == 0);
  for (const LogicalMatrix& matrix : stack_) {
    CHECK(matrix.columns() == columns_);
    rows_ += matrix.rows();
  }
  const std::int64_t bytes =
      format_ == LinearFormat::kW8R ? columns_ * kTileRows : columns_ / kBlockCols * kW4TileBlockBytes;
  tile_.resize(static_cast<std::size_t>(bytes));
  values_.resize(static_cast<std::size_t>(columns_));
}

TilePacker::Source TilePacker::source(std::int64_t row) const {
  for (const LogicalMatrix& matrix : stack_) {
    if (row < matrix.rows()) return {&matrix, row};
    row -= matrix.rows();
  }
  CHECK(false, "row beyond the stack");
  return {};
}

Result<std::span<const std::uint8_t>> TilePacker::pack(std::int64_t tile) {
  std::ranges::fill(tile_, std::uint8_t{0});
  for (int r = 0; r < kTileRows; ++r) {
    const std::int64_t row = tile * kTileRows + r;
    if (row >= rows_) {
      if (format_ == LinearFormat::kW8R) row_scales_.push_back(0.0F);
    } else if (format_ == LinearFormat::kW4G32) {
      pack_w4_row(row, r);
    } else if (Status status = pack_w8r_row(row, r); !status) {
      return status.error();
    }
  }
  return std::span<const std::uint8_t>(tile_);
}

Status TilePacker::pack_w8r_row(std::int64_t row, int tile_row) {
  const auto [matrix, index] = source(row);
  dequantize_row(matrix->tensor->type, matrix->row_data(index), values_);
  const float amax = exact::abs_max(values_);
  if (!(amax <= exact::kMaxFloat)) {
    return caller_error(
        fmt::format("tensor {}, row {} holds a value that is not finite; fetch or convert the model "
                    "again",
                    matrix->tensor->name, matrix->stored_row(index)));
  }
  const auto [inverse, scale] = exact::quant_scale(amax, exact::kA8Max);
  for (std::int64_t c = 0; c < columns_; ++c) {
    const float value = values_[static_cast<std::size_t>(c)];
    const std::int32_t q = exact::quantise(value, inverse);
    tile_[w8r_at(tile_row, c)] = static_cast<std::uint8_t>(q);
    const double difference =
        static_cast<double>(value) - static_cast<double>(q) * static_cast<double>(scale);
    error_.squared_error += difference * difference;
    error_.squared_weight += static_cast<double>(value) * static_cast<double>(value);
  }
  row_scales_.push_back(scale);
  return {};
}

void TilePacker::pack_w4_row(std::int64_t row, int tile_row) {
  const auto [matrix, index] = source(row);
  const bool has_minimum = matrix->tensor->type == TensorType::kQ4_1;
  const std::uint8_t* in = matrix->row_data(index).data();
  dequantize_row(matrix->tensor->type, matrix->row_data(index), values_);
  for (const float value : values_) {
    error_.squared_weight += static_cast<double>(value) * static_cast<double>(value);
  }
  for (std::int64_t b = 0; b < columns_ / kBlockCols; ++b) {
    std::uint8_t* block = tile_.data() + b * kW4TileBlockBytes;
    const std::uint16_t d = load_u16(in);
    const std::uint16_t m = has_minimum ? load_u16(in + 2) : minus_eight_times(d);
    in += has_minimum ? 4 : 2;
    // GGUF's byte j holds the same two columns as ours.
    for (int j = 0; j < kBlockCols / 2; ++j) block[w4_at(tile_row, j)] = *in++;
    store_u16(block + kW4CoefficientsAt + 2 * tile_row, d);
    store_u16(block + kW4CoefficientsAt + 2 * (kTileRows + tile_row), m);
  }
}

void unpack_row(const PackedWeight& weight, std::int64_t row, std::span<float> out) {
  CHECK(row >= 0 && row < weight.rows && static_cast<std::int64_t>(out.size()) == weight.cols);
  const std::int64_t tile = row / kTileRows;
  const int r = static_cast<int>(row % kTileRows);
  if (weight.format == LinearFormat::kW8R) {
    const std::uint8_t* data = weight.data + tile * kTileRows * weight.cols;
    const float scale = weight.row_scale[row];
    for (std::int64_t c = 0; c < weight.cols; ++c) {
      out[static_cast<std::size_t>(c)] =
          static_cast<float>(static_cast<std::int8_t>(data[w8r_at(r, c)])) * scale;
    }
    return;
  }
  const std::int64_t blocks = weight.cols / kBlockCols;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::uint8_t* block = weight.data + (tile * blocks + b) * kW4TileBlockBytes;
    const float d = exact::from_f16(load_u16(block + kW4CoefficientsAt + 2 * r));
    const float m = exact::from_f16(load_u16(block + kW4CoefficientsAt + 2 * (kTileRows + r)));
    float* to = out.data() + b * kBlockCols;
    for (int j = 0; j < kBlockCols / 2; ++j) {
      const std::uint8_t byte = block[w4_at(r, j)];
      to[j] = std::fma(static_cast<float>(byte & 15), d, m);
      to[j + 16] = std::fma(static_cast<float>(byte >> 4), d, m);
    }
  }
}

}  // namespace fieldprint::weights
