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

// One tile at a time: its weights are one ascending stream, which the hardware prefetcher keeps up with. Two
// tiles at once halve the bandwidth of a decode step, and gain nothing where arithmetic is the limit.

/// Whether a register block fetches the lines of the next tile while it works on this one. With more tokens
/// than one register block holds, a tile is read again and the hardware prefetcher does not run ahead.
enum class Prefetch { kNone, kNextTile };

template <Prefetch kPrefetch>
void prefetch_lines(const std::uint8_t* p, int lines) {
  if constexpr (kPrefetch == Prefetch::kNextTile) {
    for (int i = 0; i < lines; ++i) _mm_prefetch(reinterpret_cast<const char*>(p + 64 * i), _MM_HINT_T0);
  }
}

/// Tokens of a w4g32 register block: dots, products and minima take 3·4 of the 32 registers, the weights of
/// a block 8. Its limit is 11 instructions on the multipliers for each block and token, 8 of them dots.
constexpr int kW4Tokens = 4;

template <int kTokens, Prefetch kPrefetch>
void w4_register_block(const LinearArgs& args, std::int64_t tile, std::int64_t t) {
  const std::int64_t blocks = args.w.cols / kBlockCols;
  const std::int64_t tile_bytes = blocks * kW4TileBlockBytes;
  const std::uint8_t* w = args.w.data + tile * tile_bytes;
  const std::int8_t* q = args.x.q + t * args.w.cols;
  const float* scale = args.x.scale + t * blocks;
  const float* block_sum = args.x.block_sum + t * blocks;
  const __m512i nibble = _mm512_set1_epi8(15);

  __m512 products[kTokens];
  __m512 minima[kTokens];
  for (int j = 0; j < kTokens; ++j) products[j] = minima[j] = _mm512_setzero_ps();
  for (std::int64_t b = 0; b < blocks; ++b, w += kW4TileBlockBytes) {
    prefetch_lines<kPrefetch>(w + tile_bytes, kW4TileBlockBytes / 64);
    __m512i dot[kTokens];
    for (int j = 0; j < kTokens; ++j) dot[j] = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const __m512i packed = _mm512_loadu_si512(w + g * 64);
      const __m512i low = _mm512_and_si512(packed, nibble);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble);
      for (int j = 0; j < kTokens; ++j) {
        const std::int8_t* x = q + j * args.w.cols + b * kBlockCols + g * kLaneCols;
        dot[j] = _mm512_dpbusd_epi32(dot[j], low, broadcast4(x));
        dot[j] = _mm512_dpbusd_epi32(dot[j], high, broadcast4(x + 16));
      }
    }
    const __m512 d = load_half16(w + 256);
    const __m512 m = load_half16(w + 288);
    for (int j = 0; j < kTokens; ++j) {
      const __m512 factor = _mm512_mul_ps(d, _mm512_set1_ps(scale[j * blocks + b]));
      products[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[j]), factor, products[j]);
      minima[j] = _mm512_fmadd_ps(m, _mm512_set1_ps(block_sum[j * blocks + b]), minima[j]);
    }
  }
  for (int j = 0; j < kTokens; ++j) {
    store_tile(args, tile, t + j, _mm512_add_ps(products[j], minima[j]));
  }
}

/// The last tokens, fewer than a register block holds.
template <int kTokens>
void w4_rest(const LinearArgs& args, std::int64_t tile, std::int64_t t) {
  if constexpr (kTokens > 0) {
    if (args.tokens - t < kTokens) return w4_rest<kTokens - 1>(args, tile, t);
    w4_register_block<kTokens, Prefetch::kNone>(args, tile, t);
  }
}

void w4_tile(const LinearArgs& args, std::int64_t tile, bool last) {
  std::int64_t t = 0;
  if (args.tokens > kW4Tokens && !last) {
    w4_register_block<kW4Tokens, Prefetch::kNextTile>(args, tile, t);
    t = kW4Tokens;
  }
  for (; t + kW4Tokens <= args.tokens; t += kW4Tokens) {
    w4_register_block<kW4Tokens, Prefetch::kNone>(args, tile, t);
  }
  w4_rest<kW4Tokens - 1>(args, tile, t);
}

/// Rows of int8 activations in a w8r register block: one a token for kA8, two (high digits, low digits) for
/// kA16, so the number is even.
constexpr int kW8Rows = 8;

template <int kRows, Prefetch kPrefetch>
void w8_register_block(const LinearArgs& args, std::int64_t tile, std::int64_t row) {
  const std::int64_t cols = args.w.cols;
  const std::uint8_t* w = args.w.data + tile * kTileRows * cols;
  const std::int8_t* q = args.x.q + row * cols;
  // w + 128 as an unsigned byte, and 128·Σx off the sum. 255·128·cols < 2^31.
  const __m512i offset = _mm512_set1_epi8(-128);
  __m512i dot[kRows];
  for (int j = 0; j < kRows; ++j) dot[j] = _mm512_set1_epi32(-128 * args.x.row_sum[row + j]);
  for (std::int64_t c = 0; c < cols; c += kLaneCols) {
    prefetch_lines<kPrefetch>(w + (cols + c) * kTileRows, 1);
    const __m512i weight = _mm512_xor_si512(_mm512_loadu_si512(w + c * kTileRows), offset);
    for (int j = 0; j < kRows; ++j) {
      dot[j] = _mm512_dpbusd_epi32(dot[j], weight, broadcast4(q + j * cols + c));
    }
  }
  const __m512 row_scale = _mm512_loadu_ps(args.w.row_scale + tile * kTileRows);
  if (args.x.format == ActivationFormat::kA8) {
    for (int j = 0; j < kRows; ++j) {
      const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(args.x.scale[row + j]), row_scale);
      store_tile(args, tile, row + j, _mm512_mul_ps(_mm512_cvtepi32_ps(dot[j]), factor));
    }
  } else if constexpr (kRows % 2 == 0) {
    for (int j = 0; j < kRows; j += 2) {
      const std::int64_t t = (row + j) / 2;
      const __m512 factor = _mm512_mul_ps(_mm512_set1_ps(args.x.scale[t]), row_scale);
      const __m512 sum =
          _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[j]), _mm512_set1_ps(256.0F), _mm512_cvtepi32_ps(dot[j + 1]));
      store_tile(args, tile, t, _mm512_mul_ps(sum, factor));
    }
  }
}

/// The last rows, fewer than a register block holds.
template <int kRows>
void w8_rest(const LinearArgs& args, std::int64_t tile, std::int64_t row, std::int64_t rows) {
  if constexpr (kRows > 0) {
    if (rows - row < kRows) return w8_rest<kRows - 1>(args, tile, row, rows);
    w8_register_block<kRows, Prefetch::kNone>(args, tile, row);
  }
}

void w8_tile(const LinearArgs& args, std::int64_t tile, bool last) {
  const std::int64_t rows = args.x.format == ActivationFormat::kA16 ? 2LL * args.tokens : args.tokens;
  std::int64_t row = 0;
  if (rows > kW8Rows && !last) {
    w8_register_block<kW8Rows, Prefetch::kNextTile>(args, tile, row);
    row = kW8Rows;
  }
  for (; row + kW8Rows <= rows; row += kW8Rows) {
    w8_register_block<kW8Rows, Prefetch::kNone>(args, tile, row);
  }
  w8_rest<kW8Rows - 1>(args, tile, row, rows);
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
  const auto run = args.w.format == LinearFormat::kW8R ? w8_tile : w4_tile;
  for (std::int64_t tile = begin; tile < end; ++tile) run(args, tile, tile + 1 == end);
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
