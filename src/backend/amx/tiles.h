#pragma once

#include <immintrin.h>

#include <cstdint>

#include "backend/ops.h"
#include "exact/format.h"

namespace fieldprint::backend::amx {
namespace {

using exact::kBlockCols;
using exact::kLaneCols;
using exact::kTileRows;
using exact::kW4TileBlockBytes;

/// What LDTILECFG reads (Intel SDM volume 1, 18.1: palette 1).
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t reserved[15] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

/// The compiler does not know that the tile instructions read memory.
inline void publish_stores() { asm volatile("" ::: "memory"); }

/// Tile registers 0 to 3 become sums [rows][16] of int32, 4 and 5 activations [rows][cols] of int8, 6 and 7
/// weights [cols/4][16][4].
inline void configure_tiles(int rows, int cols) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.row_bytes[i] = static_cast<std::uint16_t>(i == 4 || i == 5 ? cols : 64);
    config.rows[i] = static_cast<std::uint8_t>(i < 6 ? rows : cols / kLaneCols);
  }
  publish_stores();
  _tile_loadconfig(&config);
}

/// Stores a tile's 16 outputs of token t, less the rows that pad the last tile.
inline void store_outputs(const LinearArgs& args, std::int64_t tile, std::int64_t t, __m512 y) {
  const std::int64_t left = args.w.rows - tile * kTileRows;
  const auto mask = static_cast<__mmask16>(left >= kTileRows ? 0xFFFF : (1 << left) - 1);
  float* out = args.y + t * args.y_stride + tile * kTileRows;
  if (args.accumulate) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
  _mm512_mask_storeu_ps(out, mask, y);
}

}  // namespace
}  // namespace fieldprint::backend::amx
