#pragma once

#include "backend/avx512/attention_row.h"
#include "backend/simd/attention_state.h"

/// A tile against so few rows that rearranging it for them would take longer than the products. Keys of a
/// token and values of a channel are 64 bytes side by side; of four such lines the dwords are regrouped in
/// registers, so that a lane sums what belongs to one line, and the four quarters of a vector are added in
/// the end.
namespace fieldprint::backend::avx512 {
namespace {

/// Lane 4·quarter + i of out[k] has dword 4·quarter + k of line i.
struct Regrouped {
  __m512i out[4];
};

inline Regrouped regroup(const std::uint8_t* lines, std::int64_t stride, __mmask64 mask, __m512i flip) {
  __m512i line[4];
  for (std::int64_t i = 0; i < 4; ++i) {
    line[i] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, lines + i * stride), flip);
  }
  const __m512i low01 = _mm512_unpacklo_epi32(line[0], line[1]);
  const __m512i high01 = _mm512_unpackhi_epi32(line[0], line[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(line[2], line[3]);
  const __m512i high23 = _mm512_unpackhi_epi32(line[2], line[3]);
  return {{_mm512_unpacklo_epi64(low01, low23), _mm512_unpackhi_epi64(low01, low23),
           _mm512_unpacklo_epi64(high01, high23), _mm512_unpackhi_epi64(high01, high23)}};
}

inline __m512i add_halves(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xEE));
}

/// Sums of the quarters of four vectors, one after the other, from add_halves of two and two.
inline __m512i add_quarters(__m512i first, __m512i second) {
  return _mm512_add_epi32(_mm512_shuffle_i32x4(first, second, 0x88),
                          _mm512_shuffle_i32x4(first, second, 0xDD));
}

/// Scores of N rows for the tokens of page p.
template <int N>
inline void multiply_page_keys(const simd::TilePages& tile, std::int64_t dim, std::int64_t p,
                               Row* const* rows, TileScores (&scores)[N]) {
  const __m512i flip = _mm512_set1_epi8(-128);
  for (std::int64_t g = 0; g < 4; ++g) {
    __m512i halves[2][N];
    for (std::int64_t h = 0; h < 2; ++h) {
      const std::uint8_t* lines = tile.pages[p] + (16 * g + 8 * h) * dim;
      __m512i sums[N][2];
      for (auto& sum : sums) sum[0] = sum[1] = _mm512_setzero_si512();
      for (std::int64_t d = 0; d < dim; d += 64) {
        const Regrouped a = regroup(lines + d, dim, bytes_left(dim - d), flip);
        const Regrouped b = regroup(lines + 4 * dim + d, dim, bytes_left(dim - d), flip);
        for (int n = 0; n < N; ++n) {
          for (int k = 0; k < 4; ++k) {
            const __m512i q = rows[n]->spread[d / 64].dwords[k];
            sums[n][0] = _mm512_dpbusd_epi32(sums[n][0], a.out[k], q);
            sums[n][1] = _mm512_dpbusd_epi32(sums[n][1], b.out[k], q);
          }
        }
      }
      for (int n = 0; n < N; ++n) halves[h][n] = add_halves(sums[n][0], sums[n][1]);
    }
    for (int n = 0; n < N; ++n) {
      scores[n].dots[4 * p + g] =
          _mm512_add_epi32(add_quarters(halves[0][n], halves[1][n]), _mm512_set1_epi32(rows[n]->bias));
    }
  }
}

/// Folds the tile's values into the chunks of N rows.
template <int N>
inline void add_page_values(const simd::TilePages& tile, std::int64_t dim, const TileWeights* weights,
                            const FoldStep* steps, Row* const* rows) {
  Spread spread_weights[N][kTilePages];
  for (int n = 0; n < N; ++n) {
    for (std::int64_t p = 0; p < kTilePages; ++p) {
      spread_weights[n][p] = spread(_mm512_load_si512(weights[n].bytes + 64 * p));
    }
  }
  const __m512i flip = _mm512_setzero_si512();
  for (std::int64_t d = 0; d < dim; d += 16) {
    // 254 · 128 · 128 < 2^22 fits.
    __m512i halves[2][N];
    for (std::int64_t h = 0; h < 2; ++h) {
      __m512i sums[N][2];
      for (auto& sum : sums) sum[0] = sum[1] = _mm512_setzero_si512();
      for (std::int64_t p = tile.begin; p < tile.end; ++p) {
        const std::uint8_t* lines = tile.pages[p] + (dim + d + 8 * h) * kPageTokens;
        const Regrouped a = regroup(lines, kPageTokens, bytes_left(64), flip);
        const Regrouped b = regroup(lines + 4 * kPageTokens, kPageTokens, bytes_left(64), flip);
        for (int n = 0; n < N; ++n) {
          for (int k = 0; k < 4; ++k) {
            const __m512i w = spread_weights[n][p].dwords[k];
            sums[n][0] = _mm512_dpbusd_epi32(sums[n][0], w, a.out[k]);
            sums[n][1] = _mm512_dpbusd_epi32(sums[n][1], w, b.out[k]);
          }
        }
      }
      for (int n = 0; n < N; ++n) halves[h][n] = add_halves(sums[n][0], sums[n][1]);
    }
    for (int n = 0; n < N; ++n) {
      const __m512i sum = add_quarters(halves[0][n], halves[1][n]);
      fold_channels<Isa>(steps[n], rows[n]->chunk.output + d, _mm512_cvtepi32_ps(sum));
    }
  }
}

template <int N>
inline void attend_narrow(const simd::TilePages& tile, std::int64_t dim, Row* const* rows) {
  TileScores scores[N];
  clear_unread(tile, scores);
  for (std::int64_t p = tile.begin; p < tile.end; ++p) {
    multiply_page_keys<N>(tile, dim, p, rows, scores);
  }
  TileWeights weights[N];
  FoldStep steps[N];
  weigh<N>(scores, tile.start, rows, weights, steps);
  add_page_values<N>(tile, dim, weights, steps, rows);
}

}  // namespace
}  // namespace fieldprint::backend::avx512
