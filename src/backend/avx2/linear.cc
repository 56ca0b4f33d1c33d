#include "backend/avx2/linear.h"

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "exact/format.h"

namespace fieldprint::backend::avx2 {
namespace {

using exact::kBlockCols;
using exact::kLaneCols;
using exact::kTileRows;
using exact::kW4TileBlockBytes;

/// A tile is worked on in halves of 8 rows, one row a lane.
constexpr int kHalfRows = 8;

__m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

/// The four activations at q, in every lane.
__m256i broadcast4(const std::int8_t* q) {
  std::int32_t word = 0;
  std::memcpy(&word, q, sizeof word);
  return _mm256_set1_epi32(word);
}

__m256 load_half8(const std::uint8_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}

/// Stores 8 outputs of token t from row `row` on, less the rows that pad the last tile.
void store_rows(const LinearArgs& args, std::int64_t row, std::int64_t t, __m256 y) {
  float* out = args.y + t * args.y_stride + row;
  const std::int64_t left = args.w.rows - row;
  if (left >= kHalfRows) {
    if (args.accumulate) y = _mm256_add_ps(_mm256_loadu_ps(out), y);
    _mm256_storeu_ps(out, y);
    return;
  }
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<std::int32_t>(left)), lane);
  if (args.accumulate) y = _mm256_add_ps(_mm256_maskload_ps(out, mask), y);
  _mm256_maskstore_ps(out, mask, y);
}

/// 8 rows (`half` of a tile) by kTokens tokens from t on.
template <int kTokens>
void w4_half(const LinearArgs& args, std::int64_t tile, int half, std::int64_t t) {
  const std::int64_t blocks = args.w.cols / kBlockCols;
  const std::uint8_t* w = args.w.data + tile * blocks * kW4TileBlockBytes;
  const std::int8_t* q = args.x.q + t * args.w.cols;
  const float* scale = args.x.scale + t * blocks;
  const float* block_sum = args.x.block_sum + t * blocks;
  const __m256i nibble = _mm256_set1_epi8(15);

  __m256 products[kTokens];
  __m256 minima[kTokens];
  for (int j = 0; j < kTokens; ++j) products[j] = minima[j] = _mm256_setzero_ps();
  for (std::int64_t b = 0; b < blocks; ++b, w += kW4TileBlockBytes) {
    // 16 products of at most 15·128 fit in a 16-bit lane, so a whole block does before it is widened.
    __m256i dot[kTokens];
    for (int j = 0; j < kTokens; ++j) dot[j] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const __m256i packed = load256(w + g * 64 + half * 32);
      const __m256i low = _mm256_and_si256(packed, nibble);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
      for (int j = 0; j < kTokens; ++j) {
        const std::int8_t* x = q + j * args.w.cols + b * kBlockCols + g * kLaneCols;
        dot[j] = _mm256_add_epi16(dot[j], _mm256_maddubs_epi16(low, broadcast4(x)));
        dot[j] = _mm256_add_epi16(dot[j], _mm256_maddubs_epi16(high, broadcast4(x + 16)));
      }
    }
    const __m256 d = load_half8(w + 256 + half * 16);
    const __m256 m = load_half8(w + 288 + half * 16);
    for (int j = 0; j < kTokens; ++j) {
      const __m256 sum = _mm256_cvtepi32_ps(_mm256_madd_epi16(dot[j], _mm256_set1_epi16(1)));
      const __m256 factor = _mm256_mul_ps(d, _mm256_set1_ps(scale[j * blocks + b]));
      products[j] = _mm256_fmadd_ps(sum, factor, products[j]);
      minima[j] = _mm256_fmadd_ps(m, _mm256_set1_ps(block_sum[j * blocks + b]), minima[j]);
    }
  }
  for (int j = 0; j < kTokens; ++j) {
    store_rows(args, tile * kTileRows + half * kHalfRows, t + j, _mm256_add_ps(products[j], minima[j]));
  }
}

template <int kTokens>
void w4_block_tile(const LinearArgs& args, std::int64_t tile, std::int64_t t) {
  w4_half<kTokens>(args, tile, 0, t);
  if (args.w.rows - tile * kTileRows > kHalfRows) w4_half<kTokens>(args, tile, 1, t);
}

void w4_tile(const LinearArgs& args, std::int64_t tile) {
  std::int64_t t = 0;
  for (; t + 4 <= args.tokens; t += 4) w4_block_tile<4>(args, tile, t);
  if (t + 2 <= args.tokens) {
    w4_block_tile<2>(args, tile, t);
    t += 2;
  }
  if (t < args.tokens) w4_block_tile<1>(args, tile, t);
}

/// Sums of 8 rows: two lanes a row, rows 0..3 in `a` and 4..7 in `b`.
__m256i pair_sums(__m256i a, __m256i b) { return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xD8); }

/// 8 rows (`half` of a tile) by kRows rows of int8 activations: one a token for kA8, two (high digits, low
/// digits) for kA16.
template <int kRows>
void w8_half(const LinearArgs& args, std::int64_t tile, int half, std::int64_t row) {
  const std::int64_t cols = args.w.cols;
  const std::uint8_t* w = args.w.data + tile * kTileRows * cols + half * kHalfRows * kLaneCols;
  const std::int8_t* q = args.x.q + row * cols;
  __m256i dot[kRows][2];
  for (int j = 0; j < kRows; ++j) dot[j][0] = dot[j][1] = _mm256_setzero_si256();
  for (std::int64_t c = 0; c < cols; c += kLaneCols) {
    const __m256i bytes = load256(w + c * kTileRows);
    const __m256i first = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(bytes));
    const __m256i second = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(bytes, 1));
    for (int j = 0; j < kRows; ++j) {
      const __m256i x = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(broadcast4(q + j * cols + c)));
      dot[j][0] = _mm256_add_epi32(dot[j][0], _mm256_madd_epi16(first, x));
      dot[j][1] = _mm256_add_epi32(dot[j][1], _mm256_madd_epi16(second, x));
    }
  }
  const std::int64_t out_row = tile * kTileRows + half * kHalfRows;
  const __m256 row_scale = _mm256_loadu_ps(args.w.row_scale + out_row);
  if (args.x.format == ActivationFormat::kA8) {
    for (int j = 0; j < kRows; ++j) {
      const __m256 factor = _mm256_mul_ps(_mm256_set1_ps(args.x.scale[row + j]), row_scale);
      const __m256 sum = _mm256_cvtepi32_ps(pair_sums(dot[j][0], dot[j][1]));
      store_rows(args, out_row, row + j, _mm256_mul_ps(sum, factor));
    }
  } else if constexpr (kRows % 2 == 0) {
    for (int j = 0; j < kRows; j += 2) {
      const std::int64_t t = (row + j) / 2;
      const __m256 factor = _mm256_mul_ps(_mm256_set1_ps(args.x.scale[t]), row_scale);
      const __m256 high = _mm256_cvtepi32_ps(pair_sums(dot[j][0], dot[j][1]));
      const __m256 low = _mm256_cvtepi32_ps(pair_sums(dot[j + 1][0], dot[j + 1][1]));
      const __m256 sum = _mm256_fmadd_ps(high, _mm256_set1_ps(256.0F), low);
      store_rows(args, out_row, t, _mm256_mul_ps(sum, factor));
    }
  }
}

template <int kRows>
void w8_block_tile(const LinearArgs& args, std::int64_t tile, std::int64_t row) {
  w8_half<kRows>(args, tile, 0, row);
  if (args.w.rows - tile * kTileRows > kHalfRows) w8_half<kRows>(args, tile, 1, row);
}

void w8_tile(const LinearArgs& args, std::int64_t tile) {
  const std::int64_t rows = args.x.format == ActivationFormat::kA16 ? 2LL * args.tokens : args.tokens;
  std::int64_t row = 0;
  for (; row + 4 <= rows; row += 4) w8_block_tile<4>(args, tile, row);
  if (row + 2 <= rows) {
    w8_block_tile<2>(args, tile, row);
    row += 2;
  }
  if (row < rows) w8_block_tile<1>(args, tile, row);
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
  const __m128 factor = _mm_set1_ps(scale);
  for (std::int64_t b = 0; b < blocks; ++b, block += kW4TileBlockBytes) {
    const __m128 d = _mm_set1_ps(load_half(block + 256 + 2 * r));
    const __m128 m = _mm_set1_ps(load_half(block + 288 + 2 * r));
    float* to = out + b * kBlockCols;
    for (int g = 0; g < 4; ++g) {
      std::int32_t word = 0;
      std::memcpy(&word, block + g * 64 + r * kLaneCols, sizeof word);
      const __m128i packed = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(word));
      const __m128 low = _mm_cvtepi32_ps(_mm_and_si128(packed, _mm_set1_epi32(15)));
      const __m128 high = _mm_cvtepi32_ps(_mm_srli_epi32(packed, 4));
      _mm_storeu_ps(to + 4 * g, _mm_mul_ps(_mm_fmadd_ps(low, d, m), factor));
      _mm_storeu_ps(to + 16 + 4 * g, _mm_mul_ps(_mm_fmadd_ps(high, d, m), factor));
    }
  }
}

}  // namespace

void linear(const LinearArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t tile = begin; tile < end; ++tile) {
    if (args.w.format == LinearFormat::kW8R) {
      w8_tile(args, tile);
    } else {
      w4_tile(args, tile);
    }
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

}  // namespace fieldprint::backend::avx2
