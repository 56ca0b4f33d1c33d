#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/ops.h"
#include "base/result.h"
#include "weights/gguf.h"

namespace fieldprint::weights {

/// How the rows of a stored query or key matrix stand in the file.
enum class RowOrder : std::uint8_t {
  kPlain = 0,
  /// Rotary pairs are neighbours: row 2i of a head pairs with row 2i+1 (the order of ggml's `llama` files).
  /// Read so that row i pairs with row i + D/2.
  kInterleaved = 1,
};

/// A matrix of a GGUF file with its rows in the order in which fieldprint computes.
struct LogicalMatrix {
  const GgufTensor* tensor = nullptr;
  RowOrder order = RowOrder::kPlain;
  std::int32_t head_dim = 0;  ///< used by kInterleaved

  std::int64_t rows() const { return tensor->rows(); }
  std::int64_t columns() const { return tensor->columns(); }
  std::int64_t stored_row(std::int64_t row) const;
  std::span<const std::uint8_t> row_data(std::int64_t row) const { return tensor->row(stored_row(row)); }
};

/// Matrices of the same number of columns, one under the other.
using MatrixStack = std::vector<LogicalMatrix>;

/// w4g32 where it keeps the tensor losslessly: Q4_1, and Q4_0 when −8·d fits in f16 for every block; else
/// w8r. A coefficient that is not finite is an error that names the tensor.
Result<backend::LinearFormat> packed_format(const GgufTensor& tensor);

/// What quantisation did to a matrix.
struct PackError {
  double squared_error = 0;   ///< Σ(w − ŵ)²
  double squared_weight = 0;  ///< Σw²
};

/// One tile of 16 rows at a time, so that memory does not grow with the matrix.
class TilePacker {
 public:
  TilePacker(MatrixStack stack, backend::LinearFormat format);

  std::int64_t tiles() const { return (rows_ + 15) / 16; }
  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }

  /// The bytes of a tile in the layout of backend::PackedWeight, valid until the next call. Rows beyond the
  /// last are zero. A value that is not finite is an error that names tensor and row.
  Result<std::span<const std::uint8_t>> pack(std::int64_t tile);

  /// kW8R: the scales of the rows packed so far, with padding.
  const std::vector<float>& row_scales() const { return row_scales_; }
  const PackError& error() const { return error_; }

 private:
  struct Source {
    const LogicalMatrix* matrix;
    std::int64_t row;
  };
  Source source(std::int64_t row) const;
  Status pack_w8r_row(std::int64_t row, int tile_row);
  void pack_w4_row(std::int64_t row, int tile_row);

  MatrixStack stack_;
  backend::LinearFormat format_;
  std::int64_t rows_ = 0;
  std::int64_t columns_ = 0;
  std::vector<std::uint8_t> tile_;
  std::vector<float> values_;
  std::vector<float> row_scales_;
  PackError error_;
};

/// Row `row` of a packed matrix as float32; out.size() = cols.
void unpack_row(const backend::PackedWeight& weight, std::int64_t row, std::span<float> out);

}  // namespace fieldprint::weights
