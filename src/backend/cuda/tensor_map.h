#pragma once

#include <cuda.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace fieldprint::backend::cuda {

struct Box {
  int rows;
  int bytes;  ///< of a row; 128, the span of the swizzle
};

/// A tensor map of bytes of kRank dimensions, the innermost first: its extents, the strides of all dimensions
/// but the innermost (multiples of 16), and the box that a copy brings, of 64 or 128 bytes in the innermost
/// dimension and swizzled over these; zeros past the edges. `data` is 16-byte aligned.
template <std::size_t kRank>
CUtensorMap byte_map(const void* data, const std::array<std::uint64_t, kRank>& extent,
                     const std::array<std::uint64_t, kRank - 1>& stride,
                     const std::array<std::uint32_t, kRank>& box);
extern template CUtensorMap byte_map<3>(const void*, const std::array<std::uint64_t, 3>&,
                                        const std::array<std::uint64_t, 2>&,
                                        const std::array<std::uint32_t, 3>&);
extern template CUtensorMap byte_map<4>(const void*, const std::array<std::uint64_t, 4>&,
                                        const std::array<std::uint64_t, 3>&,
                                        const std::array<std::uint32_t, 4>&);

/// A tensor map of a row-major matrix of bytes [rows][row_bytes], row_bytes a multiple of 16, `data` 16-byte
/// aligned: a copy brings a box in 128-byte swizzle, with zeros past the matrix's edges.
CUtensorMap byte_matrix_map(const void* data, std::int64_t rows, std::int64_t row_bytes, Box box);

}  // namespace fieldprint::backend::cuda
