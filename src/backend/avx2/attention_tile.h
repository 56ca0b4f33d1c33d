#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "backend/avx2/math.h"
#include "backend/simd/attention_state.h"
#include "exact/format.h"

/// One tile of K and V against some query rows. It is unpacked once into 16-bit pairs of one token (K) or of
/// one channel (V), as vpmaddwd wants them; then every row uses it. Of each four bytes 0 1 2 3 the pair (0,
/// 2) comes first and (1, 3) second, which spares a shuffle; sums of integers do not mind. Of values these
/// are tokens t and t + 8, so that weights of 16 tokens are paired without any.
namespace fieldprint::backend::avx2 {
namespace {

using simd::fold_channels;
using simd::FoldStep;
using simd::kMaxDim;
using simd::kPageTokens;
using simd::kTilePages;
using simd::kTileTokens;
using simd::ScoreUnit;
using simd::State;

/// One query head of one token, and the tokens [first, last) of the segment that it sees.
struct Row {
  alignas(32) std::int16_t pairs[kMaxDim];
  const std::int8_t* q;
  ScoreUnit score;
  std::int64_t first;
  std::int64_t last;
  State chunk;
  State row;
};

struct UnpackedTile {
  alignas(32) std::int16_t keys[kTilePages][kMaxDim * kPageTokens];    // [D/4][2][64][2]
  alignas(32) std::int16_t values[kTilePages][kPageTokens * kMaxDim];  // [64/4][2][D][2]
};

/// Bytes 0 and 2, and bytes 1 and 3, of each lane as 16-bit pairs.
struct BytePairs {
  __m256i even;
  __m256i odd;
};
inline BytePairs widen_bytes(__m256i bytes) {
  return {_mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), _mm256_srai_epi16(bytes, 8)};
}

inline __m256i load_bytes(const void* bytes) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(bytes));
}
inline void store_bytes(void* out, __m256i bytes) { _mm256_store_si256(static_cast<__m256i*>(out), bytes); }

inline void set_query(Row& row, const std::int8_t* q, std::int64_t dim) {
  row.q = q;
  for (std::int64_t i = 0; i < dim; i += 4) {
    row.pairs[i] = q[i];
    row.pairs[i + 1] = q[i + 2];
    row.pairs[i + 2] = q[i + 1];
    row.pairs[i + 3] = q[i + 3];
  }
}

/// Columns 4c .. 4c+3 of 8 rows of dwords: out[k] has column 4c+k in its 8 lanes.
inline void transpose(const std::uint8_t* in, std::int64_t row_stride, __m256i* out) {
  __m256i rows[4];
  for (std::int64_t i = 0; i < 4; ++i) {
    const auto* low = reinterpret_cast<const __m128i*>(in + i * row_stride);
    const auto* high = reinterpret_cast<const __m128i*>(in + (i + 4) * row_stride);
    rows[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
  }
  const __m256i low01 = _mm256_unpacklo_epi32(rows[0], rows[1]);
  const __m256i high01 = _mm256_unpackhi_epi32(rows[0], rows[1]);
  const __m256i low23 = _mm256_unpacklo_epi32(rows[2], rows[3]);
  const __m256i high23 = _mm256_unpackhi_epi32(rows[2], rows[3]);
  out[0] = _mm256_unpacklo_epi64(low01, low23);
  out[1] = _mm256_unpackhi_epi64(low01, low23);
  out[2] = _mm256_unpacklo_epi64(high01, high23);
  out[3] = _mm256_unpackhi_epi64(high01, high23);
}

inline void unpack_keys(const std::uint8_t* keys, std::int64_t dim, std::int16_t* out) {
  for (std::int64_t token = 0; token < kPageTokens; token += 8) {
    for (std::int64_t d = 0; d < dim; d += 16) {
      __m256i columns[4];
      transpose(keys + token * dim + d, dim, columns);
      for (std::int64_t k = 0; k < 4; ++k) {
        const BytePairs pairs = widen_bytes(columns[k]);
        std::int16_t* to = out + (d + 4 * k) * kPageTokens + 2 * token;
        store_bytes(to, pairs.even);
        store_bytes(to + 2 * kPageTokens, pairs.odd);
      }
    }
  }
}

inline void unpack_values(const std::uint8_t* values, std::int64_t dim, std::int16_t* out) {
  for (std::int64_t d = 0; d < dim; d += 8) {
    for (std::int64_t token = 0; token < kPageTokens; token += 16) {
      __m256i columns[4];
      transpose(values + d * kPageTokens + token, kPageTokens, columns);
      for (std::int64_t k = 0; k < 4; ++k) {
        const BytePairs pairs = widen_bytes(columns[k]);
        std::int16_t* to = out + (token + 4 * k) * dim + 2 * d;
        store_bytes(to, pairs.even);
        store_bytes(to + 2 * dim, pairs.odd);
      }
    }
  }
}

inline void unpack(const simd::TilePages& tile, std::int64_t dim, UnpackedTile& out) {
  for (std::int64_t p = tile.begin; p < tile.end; ++p) {
    unpack_keys(tile.pages[p], dim, out.keys[p]);
    unpack_values(tile.pages[p] + kPageTokens * dim, dim, out.values[p]);
  }
}

struct TileScores {
  alignas(32) std::int32_t dots[kTileTokens];
};

/// A tile's weights in the order of the values.
struct TileWeights {
  alignas(32) std::int16_t pairs[kTileTokens];
};

inline std::int32_t reduce_max(__m256i x) {
  const __m128i by4 = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const __m128i by2 = _mm_max_epi32(by4, _mm_shuffle_epi32(by4, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(by2, _mm_shuffle_epi32(by2, 0xB1)));
}

inline std::int32_t reduce_add(__m256i x) {
  const __m128i by4 = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const __m128i by2 = _mm_add_epi32(by4, _mm_shuffle_epi32(by4, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(by2, _mm_shuffle_epi32(by2, 0xB1)));
}

/// Takes out the scores of tokens that the row does not see.
inline void hide_unseen(const Row& row, std::int64_t start, TileScores& scores) {
  if (row.first <= start && row.last >= start + kTileTokens) return;
  for (std::int64_t j = 0; j < kTileTokens; ++j) {
    if (start + j < row.first || start + j >= row.last) scores.dots[j] = simd::kUnseenScore;
  }
}

/// Scores to weights: the middle of the tile. Returns the largest score and the sum of the weights.
struct Weighed {
  std::int32_t maximum;
  std::int32_t sum;
};
inline Weighed weigh(const Row& row, const TileScores& scores, TileWeights& out) {
  __m256i largest = load_bytes(scores.dots);
  for (std::int64_t j = 8; j < kTileTokens; j += 8) {
    largest = _mm256_max_epi32(largest, load_bytes(scores.dots + j));
  }
  const std::int32_t maximum = reduce_max(largest);
  const __m256i shift = _mm256_set1_epi32(simd::kScoreMagicBits - maximum);
  const __m256i lowest = _mm256_set1_epi32(row.score.lowest);
  const auto weight = [&](std::int64_t j) {
    const __m256i below = _mm256_max_epi32(_mm256_add_epi32(load_bytes(scores.dots + j), shift), lowest);
    return attention_weight(below, _mm256_set1_ps(row.score.unit), _mm256_set1_ps(row.score.base));
  };
  __m256i sum = _mm256_setzero_si256();
  for (std::int64_t j = 0; j < kTileTokens; j += 16) {
    const __m256i pairs = _mm256_blend_epi16(weight(j), _mm256_slli_epi32(weight(j + 8), 16), 0xAA);
    store_bytes(out.pairs + j, pairs);
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  return {maximum, reduce_add(sum)};
}

/// Two 16-bit integers in every lane.
inline __m256i broadcast_pair(const std::int16_t* pair) {
  std::int32_t both = 0;
  std::memcpy(&both, pair, sizeof both);
  return _mm256_set1_epi32(both);
}

/// Scores of N rows for 32 tokens of a page, from token `token` on.
template <int N>
inline void multiply_keys(const std::int16_t* keys, std::int64_t dim, std::int64_t token, Row* const* rows,
                          std::int32_t* const (&dots)[N]) {
  __m256i sums[N][4] = {};
  for (std::int64_t d = 0; d < dim; d += 2) {
    for (int n = 0; n < N; ++n) {
      const __m256i q = broadcast_pair(rows[n]->pairs + d);
      for (int g = 0; g < 4; ++g) {
        const __m256i pairs = load_bytes(keys + d * kPageTokens + 2 * token + 16 * g);
        sums[n][g] = _mm256_add_epi32(sums[n][g], _mm256_madd_epi16(q, pairs));
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int g = 0; g < 4; ++g) store_bytes(dots[n] + token + 8 * g, sums[n][g]);
  }
}

/// Folds 8·J channels of the tile, from channel d on, into the chunks of N rows.
template <int N, int J>
inline void add_values(const simd::TilePages& tile, const UnpackedTile& unpacked, std::int64_t dim,
                       std::int64_t d, const TileWeights* weights, const FoldStep* steps, Row* const* rows) {
  // 254 · 128 · 128 < 2^22 fits.
  __m256i sums[N][J] = {};
  for (std::int64_t p = tile.begin; p < tile.end; ++p) {
    for (std::int64_t token = 0; token < kPageTokens; token += 2) {
      const std::int16_t* values = unpacked.values[p] + token * dim + 2 * d;
      for (int n = 0; n < N; ++n) {
        const __m256i w = broadcast_pair(weights[n].pairs + p * kPageTokens + token);
        for (int j = 0; j < J; ++j) {
          sums[n][j] = _mm256_add_epi32(sums[n][j], _mm256_madd_epi16(w, load_bytes(values + 16 * j)));
        }
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int j = 0; j < J; ++j) {
      fold_channels<Isa>(steps[n], rows[n]->chunk.output + d + 8 * j, _mm256_cvtepi32_ps(sums[n][j]));
    }
  }
}

/// Folds the tile into the chunks of N rows.
template <int N>
inline void attend_rows(const simd::TilePages& whole, const UnpackedTile& unpacked, std::int64_t dim,
                        Row* const* rows) {
  const simd::TilePages tile = simd::seen_pages(whole, rows, N);
  TileScores scores[N] = {};
  for (std::int64_t p = tile.begin; p < tile.end; ++p) {
    std::int32_t* dots[N];
    for (int n = 0; n < N; ++n) dots[n] = scores[n].dots + p * kPageTokens;
    multiply_keys<N>(unpacked.keys[p], dim, 0, rows, dots);
    multiply_keys<N>(unpacked.keys[p], dim, kPageTokens / 2, rows, dots);
  }
  TileWeights weights[N];
  FoldStep steps[N];
  State* states[N];
  alignas(16) float references[4] = {};
  alignas(16) float denominators[4] = {};
  for (int n = 0; n < N; ++n) {
    const Row& row = *rows[n];
    hide_unseen(row, tile.start, scores[n]);
    const Weighed weighed = weigh(row, scores[n], weights[n]);
    references[n] = static_cast<float>(weighed.maximum) * row.score.unit;
    denominators[n] = static_cast<float>(weighed.sum);
    states[n] = &rows[n]->chunk;
  }
  simd::fold_scalars<Isa, N>(states, _mm_load_ps(references), _mm_load_ps(denominators), steps);
  std::int64_t d = 0;
  for (; d + 32 <= dim; d += 32) add_values<N, 4>(tile, unpacked, dim, d, weights, steps, rows);
  for (; d < dim; d += 16) add_values<N, 2>(tile, unpacked, dim, d, weights, steps, rows);
}

/// For the walk over the tiles.
struct Tile : Isa {
  using Row = avx2::Row;
  using UnpackedTile = avx2::UnpackedTile;

  static void set_query(Row& row, const std::int8_t* q, std::int64_t dim) { avx2::set_query(row, q, dim); }

  static void attend(const simd::TilePages& tile, std::int64_t dim, Row* const* rows, std::int64_t count,
                     UnpackedTile& unpacked) {
    unpack(tile, dim, unpacked);
    for (; count >= 2; count -= 2, rows += 2) attend_rows<2>(tile, unpacked, dim, rows);
    if (count == 1) attend_rows<1>(tile, unpacked, dim, rows);
  }
};

}  // namespace
}  // namespace fieldprint::backend::avx2
