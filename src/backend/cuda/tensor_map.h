#pragma once

#include <cuda.h>

#include <cstdint>

namespace fieldprint::backend::cuda {

struct Box {
  int rows;
  int bytes;  ///< of a row; 128, the span of the swizzle
};

/// A tensor map of a row-major matrix of bytes [rows][row_bytes], row_bytes a multiple of 16, `data` 16-byte
/// aligned: a copy brings a box in 128-byte swizzle, with zeros past the matrix's edges.
CUtensorMap byte_matrix_map(const void* data, std::int64_t rows, std::int64_t row_bytes, Box box);

}  // namespace fieldprint::backend::cuda
