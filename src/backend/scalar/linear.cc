#include "backend/scalar/linear.h"

#include <array>
#include <cmath>
#include <cstring>

#include "exact/arith.h"

namespace fieldprint::backend::scalar {
namespace {

using exact::kBlockCols;
using exact::kLaneCols;
using exact::kTileRows;
using exact::kW4TileBlockBytes;

/// The 16 weights of a w8r tile that stand in column c.
std::array<std::int8_t, kTileRows> w8r_column(const PackedWeight& w, std::int64_t tile, std::int64_t c) {
  const auto* lane = reinterpret_cast<const std::int8_t*>(w.data) + tile * kTileRows * w.cols +
                     (c / kLaneCols) * kTileRows * kLaneCols + c % kLaneCols;
  std::array<std::int8_t, kTileRows> column{};
  for (std::size_t r = 0; r < kTileRows; ++r) column[r] = lane[r * kLaneCols];
  return column;
}

const std::uint8_t* w4_block(const PackedWeight& w, std::int64_t tile, std::int64_t block) {
  return w.data + (tile * (w.cols / kBlockCols) + block) * kW4TileBlockBytes;
}

/// The 4-bit value of row r, column c (0..31) of a block.
std::int32_t w4_value(const std::uint8_t* block, std::int64_t r, std::int64_t c) {
  const std::uint8_t byte =
      block[(c % 16 / kLaneCols) * kTileRows * kLaneCols + r * kLaneCols + c % kLaneCols];
  return c < 16 ? byte & 15 : byte >> 4;
}

/// d (which = 0) or m (which = 1) of row r of a block.
float w4_coefficient(const std::uint8_t* block, int which, std::int64_t r) {
  std::uint16_t half = 0;
  std::memcpy(&half, block + kTileRows * kBlockCols / 2 + (which * kTileRows + r) * 2, 2);
  return exact::from_f16(half);
}

using TileSums = std::array<std::int32_t, kTileRows>;

TileSums w8r_dot(const PackedWeight& w, std::int64_t tile, const std::int8_t* x) {
  TileSums sums{};
  for (std::int64_t c = 0; c < w.cols; ++c) {
    const auto column = w8r_column(w, tile, c);
    for (std::size_t r = 0; r < kTileRows; ++r) sums[r] += column[r] * x[c];
  }
  return sums;
}

std::array<float, kTileRows> w8r_tile(const LinearArgs& args, std::int64_t tile, std::int64_t t) {
  const PackedWeight& w = args.w;
  const float* row_scale = w.row_scale + tile * kTileRows;
  const float scale = args.x.scale[t];
  std::array<float, kTileRows> y{};
  if (args.x.format == ActivationFormat::kA8) {
    const TileSums dot = w8r_dot(w, tile, args.x.q + t * w.cols);
    for (std::size_t r = 0; r < kTileRows; ++r) y[r] = static_cast<float>(dot[r]) * (scale * row_scale[r]);
    return y;
  }
  const TileSums high = w8r_dot(w, tile, args.x.q + 2 * t * w.cols);
  const TileSums low = w8r_dot(w, tile, args.x.q + (2 * t + 1) * w.cols);
  for (std::size_t r = 0; r < kTileRows; ++r) {
    const float dot = std::fma(static_cast<float>(high[r]), 256.0F, static_cast<float>(low[r]));
    y[r] = dot * (scale * row_scale[r]);
  }
  return y;
}

std::array<float, kTileRows> w4_tile(const LinearArgs& args, std::int64_t tile, std::int64_t t) {
  const std::int64_t blocks = args.w.cols / kBlockCols;
  std::array<float, kTileRows> products{};
  std::array<float, kTileRows> minima{};
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::uint8_t* block = w4_block(args.w, tile, b);
    const std::int8_t* x = args.x.q + t * args.w.cols + b * kBlockCols;
    const float scale = args.x.scale[t * blocks + b];
    const float block_sum = args.x.block_sum[t * blocks + b];
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      std::int32_t dot = 0;
      for (std::int64_t c = 0; c < kBlockCols; ++c) dot += w4_value(block, r, c) * x[c];
      const std::size_t i = static_cast<std::size_t>(r);
      products[i] = std::fma(static_cast<float>(dot), w4_coefficient(block, 0, r) * scale, products[i]);
      minima[i] = std::fma(w4_coefficient(block, 1, r), block_sum, minima[i]);
    }
  }
  for (std::size_t r = 0; r < kTileRows; ++r) products[r] += minima[r];
  return products;
}

}  // namespace

void linear(const LinearArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t tile = begin; tile < end; ++tile) {
    for (std::int64_t t = 0; t < args.tokens; ++t) {
      const auto y = args.w.format == LinearFormat::kW8R ? w8r_tile(args, tile, t) : w4_tile(args, tile, t);
      for (std::int64_t r = 0; r < kTileRows && tile * kTileRows + r < args.w.rows; ++r) {
        float& out = args.y[t * args.y_stride + tile * kTileRows + r];
        const float value = y[static_cast<std::size_t>(r)];
        out = args.accumulate ? out + value : value;
      }
    }
  }
}

void embed(const EmbedArgs& args, std::int64_t begin, std::int64_t end) {
  const PackedWeight& table = args.table;
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t tile = args.tokens[t] / kTileRows;
    const std::int64_t r = args.tokens[t] % kTileRows;
    float* out = args.out + t * table.cols;
    for (std::int64_t c = 0; c < table.cols; ++c) {
      if (table.format == LinearFormat::kW8R) {
        const float q = static_cast<float>(w8r_column(table, tile, c)[static_cast<std::size_t>(r)]);
        out[c] = q * table.row_scale[tile * kTileRows + r] * args.scale;
      } else {
        const std::uint8_t* block = w4_block(table, tile, c / kBlockCols);
        const float q = static_cast<float>(w4_value(block, r, c % kBlockCols));
        out[c] = std::fma(q, w4_coefficient(block, 0, r), w4_coefficient(block, 1, r)) * args.scale;
      }
    }
  }
}

}  // namespace fieldprint::backend::scalar
