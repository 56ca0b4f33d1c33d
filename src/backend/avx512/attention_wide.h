#pragma once

#include <cstring>

#include "backend/avx512/attention_row.h"
#include "backend/simd/attention_state.h"

/// A tile against many rows. It is unpacked once into an order in which a lane holds four bytes of one token
/// (K) or of one channel (V), as vpdpbusd wants them; then every row uses it.
namespace fieldprint::backend::avx512 {
namespace {

struct UnpackedTile {
  alignas(64) std::uint8_t keys[kTilePages][kMaxDim * kPageTokens];    // [D/4][64][4], each byte ^ 0x80
  alignas(64) std::uint8_t values[kTilePages][kPageTokens * kMaxDim];  // [64/4][D][4]
};

/// Turns 16 rows of 4·pieces dwords into columns of 16 lanes, `column_stride` bytes apart.
inline void transpose(const std::uint8_t* in, std::int64_t row_stride, std::int64_t pieces, std::uint8_t* out,
                      std::int64_t column_stride, __m512i flip) {
  for (std::int64_t c = 0; c < pieces; ++c) {
    __m512i rows[4];
    for (std::int64_t i = 0; i < 4; ++i) {
      const auto quarter = [&](std::int64_t lane) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + (4 * lane + i) * row_stride + 16 * c));
      };
      __m512i row = _mm512_castsi128_si512(quarter(0));
      row = _mm512_inserti32x4(row, quarter(1), 1);
      row = _mm512_inserti32x4(row, quarter(2), 2);
      row = _mm512_inserti32x4(row, quarter(3), 3);
      rows[i] = _mm512_xor_si512(row, flip);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(rows[0], rows[1]);
    const __m512i high01 = _mm512_unpackhi_epi32(rows[0], rows[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(rows[2], rows[3]);
    const __m512i high23 = _mm512_unpackhi_epi32(rows[2], rows[3]);
    std::uint8_t* column = out + 4 * c * column_stride;
    _mm512_store_si512(column, _mm512_unpacklo_epi64(low01, low23));
    _mm512_store_si512(column + column_stride, _mm512_unpackhi_epi64(low01, low23));
    _mm512_store_si512(column + 2 * column_stride, _mm512_unpacklo_epi64(high01, high23));
    _mm512_store_si512(column + 3 * column_stride, _mm512_unpackhi_epi64(high01, high23));
  }
}

inline void unpack(const simd::TilePages& tile, std::int64_t dim, UnpackedTile& out) {
  for (std::int64_t p = tile.begin; p < tile.end; ++p) {
    const std::uint8_t* keys = tile.pages[p];
    const std::uint8_t* values = keys + kPageTokens * dim;
    for (std::int64_t token = 0; token < kPageTokens; token += 16) {
      transpose(keys + token * dim, dim, dim / 16, out.keys[p] + token * 4, kPageTokens * 4,
                _mm512_set1_epi8(-128));
    }
    for (std::int64_t d = 0; d < dim; d += 16) {
      transpose(values + d * kPageTokens, kPageTokens, kPageTokens / 16, out.values[p] + d * 4, dim * 4,
                _mm512_setzero_si512());
    }
  }
}

inline __m512i broadcast_four(const void* bytes) {
  std::int32_t four = 0;
  std::memcpy(&four, bytes, sizeof four);
  return _mm512_set1_epi32(four);
}

/// Scores of 64 tokens for N rows.
template <int N>
inline void multiply_keys(const std::uint8_t* keys, std::int64_t dim, std::int64_t page, Row* const* rows,
                          TileScores (&scores)[N]) {
  __m512i dots[N][4];
  for (int n = 0; n < N; ++n) {
    for (auto& dot : dots[n]) dot = _mm512_set1_epi32(rows[n]->bias);
  }
  for (std::int64_t d = 0; d < dim; d += 4) {
    for (int n = 0; n < N; ++n) {
      const __m512i q = broadcast_four(rows[n]->q + d);
      for (int g = 0; g < 4; ++g) {
        dots[n][g] = _mm512_dpbusd_epi32(dots[n][g], _mm512_load_si512(keys + d * kPageTokens + 64 * g), q);
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int g = 0; g < 4; ++g) scores[n].dots[4 * page + g] = dots[n][g];
  }
}

/// Folds 16·J channels of the tile, from channel d on, into the chunks of N rows.
template <int N, int J>
inline void add_values(const simd::TilePages& tile, const UnpackedTile& unpacked, std::int64_t dim,
                       std::int64_t d, const TileWeights* weights, const FoldStep* steps, Row* const* rows) {
  // 254 · 128 · 128 < 2^22 fits.
  __m512i sums[N][J];
  for (auto& row : sums) {
    for (auto& sum : row) sum = _mm512_setzero_si512();
  }
  for (std::int64_t p = tile.begin; p < tile.end; ++p) {
    for (std::int64_t token = 0; token < kPageTokens; token += 4) {
      const std::uint8_t* values = unpacked.values[p] + token * dim + 4 * d;
      for (int n = 0; n < N; ++n) {
        const __m512i w = broadcast_four(weights[n].bytes + p * kPageTokens + token);
        for (int j = 0; j < J; ++j) {
          sums[n][j] = _mm512_dpbusd_epi32(sums[n][j], w, _mm512_load_si512(values + 64 * j));
        }
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int j = 0; j < J; ++j) {
      fold_channels<Isa>(steps[n], rows[n]->chunk.output + d + 16 * j, _mm512_cvtepi32_ps(sums[n][j]));
    }
  }
}

template <int N>
inline void attend_wide(const simd::TilePages& whole, const UnpackedTile& unpacked, std::int64_t dim,
                        Row* const* rows) {
  const simd::TilePages tile = simd::seen_pages(whole, rows, N);
  TileScores scores[N];
  clear_unread(tile, scores);
  for (std::int64_t p = tile.begin; p < tile.end; ++p)
    multiply_keys<N>(unpacked.keys[p], dim, p, rows, scores);
  TileWeights weights[N];
  FoldStep steps[N];
  weigh<N>(scores, tile.start, rows, weights, steps);
  std::int64_t d = 0;
  for (; d + 64 <= dim; d += 64) add_values<N, 4>(tile, unpacked, dim, d, weights, steps, rows);
  for (; d + 32 <= dim; d += 32) add_values<N, 2>(tile, unpacked, dim, d, weights, steps, rows);
  for (; d < dim; d += 16) add_values<N, 1>(tile, unpacked, dim, d, weights, steps, rows);
}

}  // namespace
}  // namespace fieldprint::backend::avx512
