#pragma once

#include "backend/amx/tiles.h"

/// w8r: sums of all columns stay in tile registers, two tiles of activations by two of weights, so that each
/// tile that is loaded is used twice. The two tiles of activations are 32 tokens of kA8, or both digits of 16
/// tokens of kA16.
namespace fieldprint::backend::amx {
namespace {

/// Columns of one product of tile registers.
inline constexpr int kW8Cols = 64;

/// Tokens of a tile register of activations, and of one of sums.
inline constexpr int kTileTokens = 16;

/// Sums of 16 tokens by 16 weight rows, as a tile register holds them.
struct alignas(64) TileSums {
  std::int32_t of[kTileTokens][kTileRows];
};

/// One register block; its sums, once they are complete.
struct W8Block {
  std::int64_t tile;
  int tiles;  ///< 1 at the end of an odd number of tiles
  std::int64_t token;
  int tokens;
  TileSums sums[2][2];  ///< of each tile of activations with each tile of weights
};

/// Adds the products of kW8Cols columns.
template <int kActivationTiles>
void w8_multiply(const std::int8_t* q, std::int64_t stride, std::int64_t second, const std::uint8_t* w,
                 std::int64_t second_tile) {
  _tile_loadd(6, w, 64);
  _tile_loadd(4, q, stride);
  _tile_dpbssd(0, 4, 6);
  _tile_loadd(7, w + second_tile, 64);
  _tile_dpbssd(1, 4, 7);
  if constexpr (kActivationTiles == 2) {
    _tile_loadd(5, q + second, stride);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
}

/// Outputs of tokens [begin, end) of a block.
template <ActivationFormat kFormat>
void w8_finish(const LinearArgs& args, const W8Block& block, int begin, int end) {
  for (int n = 0; n < block.tiles; ++n) {
    const std::int64_t tile = block.tile + n;
    const __m512 row_scale = _mm512_loadu_ps(args.w.row_scale + tile * kTileRows);
    for (int j = begin; j < end; ++j) {
      const std::int64_t t = block.token + j;
      const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(args.x.scale[t]), row_scale);
      __m512 sum;
      if constexpr (kFormat == ActivationFormat::kA8) {
        sum = _mm512_cvtepi32_ps(_mm512_load_si512(block.sums[j / kTileTokens][n].of[j % kTileTokens]));
      } else {
        const __m512 high = _mm512_cvtepi32_ps(_mm512_load_si512(block.sums[0][n].of[j]));
        const __m512 low = _mm512_cvtepi32_ps(_mm512_load_si512(block.sums[1][n].of[j]));
        sum = _mm512_fmadd_ps(high, _mm512_set1_ps(256.0F), low);
      }
      store_outputs(args, tile, t, _mm512_mul_ps(sum, factor));
    }
  }
}

/// Computes the sums of `block`, and in between the outputs of `previous`: the tile unit and the vector units
/// work at the same time.
template <ActivationFormat kFormat, int kActivationTiles>
void w8_block(const LinearArgs& args, W8Block& block, const W8Block& previous) {
  constexpr bool kDigits = kFormat == ActivationFormat::kA16;
  const std::int64_t cols = args.w.cols;
  const std::int64_t stride = kDigits ? 2 * cols : cols;
  const std::int64_t second = kDigits ? cols : kTileTokens * cols;
  const std::int8_t* q = args.x.q + block.token * stride;
  const std::uint8_t* w = args.w.data + block.tile * kTileRows * cols;
  const std::int64_t second_tile = block.tiles == 2 ? kTileRows * cols : 0;
  const int steps = static_cast<int>(cols / kW8Cols);
  const int share = (previous.tokens + steps - 1) / steps;

  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int i = 0, done = 0; i < steps; ++i, done += share) {
    w8_multiply<kActivationTiles>(q + i * kW8Cols, stride, second, w + i * kW8Cols * kTileRows, second_tile);
    const int end = done + share < previous.tokens ? done + share : previous.tokens;
    if (done < end) w8_finish<kFormat>(args, previous, done, end);
  }
  _tile_stored(0, block.sums[0][0].of, 64);
  _tile_stored(1, block.sums[0][1].of, 64);
  if constexpr (kActivationTiles == 2) {
    _tile_stored(2, block.sums[1][0].of, 64);
    _tile_stored(3, block.sums[1][1].of, 64);
  }
}

/// Part of a linear's work: weight tiles by tokens, of which every tile register of activations is filled
/// with `rows`.
struct Part {
  std::int64_t tile_begin;
  std::int64_t tile_end;
  std::int64_t token_begin;
  std::int64_t token_end;
  int rows;
};

/// Register blocks are 32 tokens of kA8 where there are so many, else one tile of tokens.
template <ActivationFormat kFormat>
void w8_part(const LinearArgs& args, const Part& part) {
  W8Block blocks[2];
  blocks[1].tokens = 0;
  int turn = 0;
  for (std::int64_t tile = part.tile_begin; tile < part.tile_end; tile += 2) {
    std::int64_t token = part.token_begin;
    while (token < part.token_end) {
      W8Block& block = blocks[turn];
      const W8Block& previous = blocks[1 - turn];
      block.tile = tile;
      block.tiles = part.tile_end - tile > 1 ? 2 : 1;
      block.token = token;
      block.tokens = part.rows;
      if constexpr (kFormat == ActivationFormat::kA16) {
        w8_block<kFormat, 2>(args, block, previous);
      } else if (part.token_end - token > part.rows) {
        block.tokens = 2 * part.rows;
        w8_block<kFormat, 2>(args, block, previous);
      } else {
        w8_block<kFormat, 1>(args, block, previous);
      }
      token += block.tokens;
      turn = 1 - turn;
    }
  }
  w8_finish<kFormat>(args, blocks[1 - turn], 0, blocks[1 - turn].tokens);
}

}  // namespace
}  // namespace fieldprint::backend::amx
