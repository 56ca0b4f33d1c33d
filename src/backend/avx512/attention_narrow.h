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

/// Sums of the quarters of four vectors, one after the other.
inline __m512i add_quarters(const __m512i (&x)[4]) {
  const __m512i first =
      _mm512_add_epi32(_mm512_shuffle_i32x4(x[0], x[1], 0x44), _mm512_shuffle_i32x4(x[0], x[1], 0xEE));
  const __m512i second =
      _mm512_add_epi32(_mm512_shuffle_i32x4(x[2], x[3], 0x44), _mm512_shuffle_i32x4(x[2], x[3], 0xEE));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(first, second, 0x88),
                          _mm512_shuffle_i32x4(first, second, 0xDD));
}

/// Scores of 64 tokens for N rows.
template <int N>
inline void multiply_page_keys(const std::uint8_t* keys, std::int64_t dim, std::int64_t page,
                               Row* const* rows, TileScores (&scores)[N]) {
  const __m512i flip = _mm512_set1_epi8(-128);
  for (std::int64_t g = 0; g < 4; ++g) {
    __m512i sums[N][4] = {};
    for (std::int64_t d = 0; d < dim; d += 64) {
      const std::uint8_t* lines = keys + 16 * g * dim + d;
      const __mmask64 mask = bytes_left(dim - d);
      for (std::int64_t i = 0; i < 4; i += 2) {
        const Regrouped a = regroup(lines + 4 * i * dim, dim, mask, flip);
        const Regrouped b = regroup(lines + 4 * (i + 1) * dim, dim, mask, flip);
        for (int n = 0; n < N; ++n) {
          for (std::int64_t k = 0; k < 4; ++k) {
            const __m512i q = _mm512_load_si512(rows[n]->spread + 4 * d + 64 * k);
            sums[n][i] = _mm512_dpbusd_epi32(sums[n][i], a.out[k], q);
            sums[n][i + 1] = _mm512_dpbusd_epi32(sums[n][i + 1], b.out[k], q);
          }
        }
      }
    }
    for (int n = 0; n < N; ++n) {
      scores[n].dots[4 * page + g] =
          _mm512_add_epi32(add_quarters(sums[n]), _mm512_set1_epi32(rows[n]->bias));
    }
  }
}

template <int N>
inline void attend_narrow(const simd::TilePages& tile, std::int64_t dim, Row* const* rows) {
  TileScores scores[N] = {};
  for (std::int64_t p = tile.begin; p < tile.end; ++p)
    multiply_page_keys<N>(tile.pages[p], dim, p, rows, scores);
  TileWeights weights[N];
  FoldStep steps[N];
  weigh<N>(scores, tile.start, rows, weights, steps);

  alignas(64) __m512i spread[N][kTilePages][4];
  for (int n = 0; n < N; ++n) {
    for (std::int64_t p = 0; p < kTilePages; ++p) {
      spread_dwords(_mm512_load_si512(weights[n].bytes + 64 * p), spread[n][p]);
    }
  }
  for (std::int64_t d = 0; d < dim; d += 16) {
    // 254 · 128 · 128 < 2^22 fits.
    __m512i sums[N][4] = {};
    for (std::int64_t p = tile.begin; p < tile.end; ++p) {
      const std::uint8_t* lines = tile.pages[p] + (dim + d) * kPageTokens;
      for (std::int64_t i = 0; i < 4; i += 2) {
        const __m512i flip = _mm512_setzero_si512();
        const Regrouped a = regroup(lines + 4 * i * kPageTokens, kPageTokens, ~std::uint64_t{0}, flip);
        const Regrouped b = regroup(lines + 4 * (i + 1) * kPageTokens, kPageTokens, ~std::uint64_t{0}, flip);
        for (int n = 0; n < N; ++n) {
          for (int k = 0; k < 4; ++k) {
            sums[n][i] = _mm512_dpbusd_epi32(sums[n][i], spread[n][p][k], a.out[k]);
            sums[n][i + 1] = _mm512_dpbusd_epi32(sums[n][i + 1], spread[n][p][k], b.out[k]);
          }
        }
      }
    }
    for (int n = 0; n < N; ++n) {
      fold_channels<Isa>(steps[n], rows[n]->chunk.output + d, _mm512_cvtepi32_ps(add_quarters(sums[n])));
    }
  }
}

}  // namespace
}  // namespace fieldprint::backend::avx512
