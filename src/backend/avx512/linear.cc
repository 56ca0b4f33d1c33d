#include "backend/avx512/linear.h"

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "exact/format.h"

namespace fieldprint::backend::avx512 {
namespace {

using exact::kBlockCols;
using exact::kLaneCols;
using exact::kTileRows;
using exact::kW4TileBlockBytes;

/// The four activations at q, in every lane.
__m512i broadcast4(const std::int8_t* q) {
  std::int32_t word = 0;
  std::memcpy(&word, q, sizeof word);
  return _mm512_set1_epi32(word);
}

__m512 load_half16(const std::uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

/// Stores a tile's 16 outputs of token t, less the rows that pad the last tile.
void store_tile(const LinearArgs& args, std::int64_t tile, std::int64_t t, __m512 y) {
  const std::int64_t left = args.w.rows - tile * kTileRows;
  const auto mask = static_cast<__mmask16>(left >= kTileRows ? 0xFFFF : (1 << left) - 1);
  float* out = args.y + t * args.y_stride + tile * kTileRows;
  if (args.accumulate) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
  _mm512_mask_storeu_ps(out, mask, y);
}

/// Two sizes and the position of a register block: `kTiles` tiles from `tile` on, `kTokens` tokens from t on.
template <int kTiles, int kTokens>
void w4_block_tile(const LinearArgs& args, std::int64_t tile, std::int64_t t) {
  const std::int64_t blocks = args.w.cols / kBlockCols;
  const std::uint8_t* w[kTiles];
  for (int i = 0; i < kTiles; ++i) w[i] = args.w.data + (tile + i) * blocks * kW4TileBlockBytes;
  const std::int8_t* q = args.x.q + t * args.w.cols;
  const float* scale = args.x.scale + t * blocks;
  const float* block_sum = args.x.block_sum + t * blocks;
  const __m512i nibble = _mm512_set1_epi8(15);

  __m512 products[kTiles][kTokens];
  __m512 minima[kTiles][kTokens];
  for (int i = 0; i < kTiles; ++i) {
    for (int j = 0; j < kTokens; ++j) products[i][j] = minima[i][j] = _mm512_setzero_ps();
  }
  for (std::int64_t b = 0; b < blocks; ++b) {
    __m512i dot[kTiles][kTokens];
    for (int i = 0; i < kTiles; ++i) {
      for (int j = 0; j < kTokens; ++j) dot[i][j] = _mm512_setzero_si512();
    }
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      __m512i low[kTiles];
      __m512i high[kTiles];
      for (int i = 0; i < kTiles; ++i) {
        const __m512i packed = _mm512_loadu_si512(w[i] + g * 64);
        low[i] = _mm512_and_si512(packed, nibble);
        high[i] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble);
      }
      for (int j = 0; j < kTokens; ++j) {
        const std::int8_t* x = q + j * args.w.cols + b * kBlockCols + g * kLaneCols;
        const __m512i x_low = broadcast4(x);
        const __m512i x_high = broadcast4(x + 16);
        for (int i = 0; i < kTiles; ++i) {
          dot[i][j] = _mm512_dpbusd_epi32(dot[i][j], low[i], x_low);
          dot[i][j] = _mm512_dpbusd_epi32(dot[i][j], high[i], x_high);
        }
      }
    }
    for (int i = 0; i < kTiles; ++i) {
      const __m512 d = load_half16(w[i] + 256);
      const __m512 m = load_half16(w[i] + 288);
      for (int j = 0; j < kTokens; ++j) {
        const __m512 factor = _mm512_mul_ps(d, _mm512_set1_ps(scale[j * blocks + b]));
        products[i][j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[i][j]), factor, products[i][j]);
        minima[i][j] = _mm512_fmadd_ps(m, _mm512_set1_ps(block_sum[j * blocks + b]), minima[i][j]);
      }
      w[i] += kW4TileBlockBytes;
    }
  }
  for (int i = 0; i < kTiles; ++i) {
    for (int j = 0; j < kTokens; ++j) {
      store_tile(args, tile + i, t + j, _mm512_add_ps(products[i][j], minima[i][j]));
    }
  }
}

template <int kTiles>
void w4_tiles(const LinearArgs& args, std::int64_t tile) {
  std::int64_t t = 0;
  for (; t + 4 <= args.tokens; t += 4) w4_block_tile<kTiles, 4>(args, tile, t);
  switch (args.tokens - t) {
    case 3:
      return w4_block_tile<kTiles, 3>(args, tile, t);
    case 2:
      return w4_block_tile<kTiles, 2>(args, tile, t);
    case 1:
      return w4_block_tile<kTiles, 1>(args, tile, t);
    default:
      return;
  }
}

/// Rows of int8 activations: one a token for kA8, two (high digits, low digits) for kA16.
template <int kTiles, int kRows>
void w8_block_tile(const LinearArgs& args, std::int64_t tile, std::int64_t row) {
  const std::int64_t cols = args.w.cols;
  const std::uint8_t* w = args.w.data + tile * kTileRows * cols;
  const std::int8_t* q = args.x.q + row * cols;
  // w + 128 as an unsigned byte; 128·Σx comes off at the end. 255·128·cols < 2^31.
  const __m512i offset = _mm512_set1_epi8(-128);
  __m512i dot[kTiles][kRows];
  for (int i = 0; i < kTiles; ++i) {
    for (int j = 0; j < kRows; ++j) {
      dot[i][j] = _mm512_set1_epi32(-128 * args.x.row_sum[row + j]);
    }
  }
  for (std::int64_t c = 0; c < cols; c += kLaneCols) {
    __m512i weight[kTiles];
    for (int i = 0; i < kTiles; ++i) {
      weight[i] = _mm512_xor_si512(_mm512_loadu_si512(w + i * kTileRows * cols + c * kTileRows), offset);
    }
    for (int j = 0; j < kRows; ++j) {
      const __m512i x = broadcast4(q + j * cols + c);
      for (int i = 0; i < kTiles; ++i) dot[i][j] = _mm512_dpbusd_epi32(dot[i][j], weight[i], x);
    }
  }
  for (int i = 0; i < kTiles; ++i) {
    const __m512 row_scale = _mm512_loadu_ps(args.w.row_scale + (tile + i) * kTileRows);
    if (args.x.format == ActivationFormat::kA8) {
      for (int j = 0; j < kRows; ++j) {
        const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(args.x.scale[row + j]), row_scale);
        store_tile(args, tile + i, row + j, _mm512_mul_ps(_mm512_cvtepi32_ps(dot[i][j]), factor));
      }
    } else if constexpr (kRows % 2 == 0) {
      for (int j = 0; j < kRows; j += 2) {
        const std::int64_t t = (row + j) / 2;
        const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(args.x.scale[t]), row_scale);
        const __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[i][j]), _mm512_set1_ps(256.0F),
                                           _mm512_cvtepi32_ps(dot[i][j + 1]));
        store_tile(args, tile + i, t, _mm512_mul_ps(sum, factor));
      }
    }
  }
}

template <int kTiles>
void w8_tiles(const LinearArgs& args, std::int64_t tile) {
  const std::int64_t rows = args.x.format == ActivationFormat::kA16 ? 2LL * args.tokens : args.tokens;
  std::int64_t row = 0;
  for (; row + 12 <= rows; row += 12) w8_block_tile<kTiles, 12>(args, tile, row);
  if (row + 8 <= rows) {
    w8_block_tile<kTiles, 8>(args, tile, row);
    row += 8;
  }
  if (row + 4 <= rows) {
    w8_block_tile<kTiles, 4>(args, tile, row);
    row += 4;
  }
  if (row + 2 <= rows) {
    w8_block_tile<kTiles, 2>(args, tile, row);
    row += 2;
  }
  if (row < rows) w8_block_tile<kTiles, 1>(args, tile, row);
}

/// Row r of a w8r tile.
void embed_w8(const PackedWeight& table, std::int64_t tile, std::int64_t r, float scale, float* out) {
  const std::uint8_t* data = table.data + tile * kTileRows * table.cols + r * kLaneCols;
  const __m128 row_scale = _mm_set1_ps(table.row_scale[tile * kTileRows + r]);
  for (std::int64_t c = 0; c < table.cols; c += kLaneCols) {
    std::int32_t word = 0;
    std::memcpy(&word, data + c * kTileRows, sizeof word);
    const __m128 q = _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(word)));
    _mm_storeu_ps(out + c, _mm_mul_ps(_mm_mul_ps(q, row_scale), _mm_set1_ps(scale)));
  }
}

float load_half(const std::uint8_t* p) {
  std::uint16_t half = 0;
  std::memcpy(&half, p, sizeof half);
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
}

/// Row r of a w4g32 tile.
void embed_w4(const PackedWeight& table, std::int64_t tile, std::int64_t r, float scale, float* out) {
  const std::int64_t blocks = table.cols / kBlockCols;
  const std::uint8_t* block = table.data + tile * blocks * kW4TileBlockBytes;
  const __m512 factor = _mm512_set1_ps(scale);
  for (std::int64_t b = 0; b < blocks; ++b, block += kW4TileBlockBytes) {
    std::uint8_t bytes[16];
    for (int g = 0; g < 4; ++g) std::memcpy(bytes + 4 * g, block + g * 64 + r * kLaneCols, 4);
    const __m512i packed = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    const __m512 d = _mm512_set1_ps(load_half(block + 256 + 2 * r));
    const __m512 m = _mm512_set1_ps(load_half(block + 288 + 2 * r));
    const __m512 low = _mm512_cvtepi32_ps(_mm512_and_si512(packed, _mm512_set1_epi32(15)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_srli_epi32(packed, 4));
    _mm512_storeu_ps(out + b * kBlockCols, _mm512_mul_ps(_mm512_fmadd_ps(low, d, m), factor));
    _mm512_storeu_ps(out + b * kBlockCols + 16, _mm512_mul_ps(_mm512_fmadd_ps(high, d, m), factor));
  }
}

}  // namespace

void linear(const LinearArgs& args, std::int64_t begin, std::int64_t end) {
  std::int64_t tile = begin;
  if (args.w.format == LinearFormat::kW8R) {
    for (; tile + 2 <= end; tile += 2) w8_tiles<2>(args, tile);
    if (tile < end) w8_tiles<1>(args, tile);
  } else {
    for (; tile + 2 <= end; tile += 2) w4_tiles<2>(args, tile);
    if (tile < end) w4_tiles<1>(args, tile);
  }
}

void embed(const EmbedArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t tile = args.tokens[t] / kTileRows;
    const std::int64_t r = args.tokens[t] % kTileRows;
    float* out = args.out + t * args.table.cols;
    if (args.table.format == LinearFormat::kW8R) {
      embed_w8(args.table, tile, r, args.scale, out);
    } else {
      embed_w4(args.table, tile, r, args.scale, out);
    }
  }
}

}  // namespace fieldprint::backend::avx512
