#pragma once

#include <immintrin.h>

#include <cstdint>

#include "backend/avx512/math.h"
#include "backend/simd/attention_state.h"
#include "exact/format.h"

/// What every way through a tile has in common: rows, and the step from scores to weights.
namespace fieldprint::backend::avx512 {
namespace {

using simd::fold_channels;
using simd::FoldStep;
using simd::kMaxDim;
using simd::kPageTokens;
using simd::kTilePages;
using simd::kTileTokens;
using simd::ScoreUnit;
using simd::State;

/// dwords[k]: dword k of each quarter, everywhere in that quarter, to multiply regrouped lines with.
struct Spread {
  __m512i dwords[4];
};

inline Spread spread(__m512i bytes) {
  return {{_mm512_shuffle_epi32(bytes, _MM_PERM_AAAA), _mm512_shuffle_epi32(bytes, _MM_PERM_BBBB),
           _mm512_shuffle_epi32(bytes, _MM_PERM_CCCC), _mm512_shuffle_epi32(bytes, _MM_PERM_DDDD)}};
}

/// One query head of one token, and the tokens [first, last) of the segment that it sees.
struct Row {
  Spread spread[kMaxDim / 64];  // of q, 64 bytes at a time
  const std::int8_t* q;
  ScoreUnit score;
  std::int32_t bias;  // -128·Σq: takes back the offset of the unsigned keys
  std::int64_t first;
  std::int64_t last;
  State chunk;
  State row;
};

/// Mask of the bytes below `left` of 64.
inline __mmask64 bytes_left(std::int64_t left) {
  return left >= 64 ? ~std::uint64_t{0} : ~std::uint64_t{0} >> (64 - left);
}

inline void set_query(Row& row, const std::int8_t* q, std::int64_t dim) {
  __m512i sum = _mm512_setzero_si512();
  for (std::int64_t d = 0; d < dim; d += 64) {
    const __m512i bytes = _mm512_maskz_loadu_epi8(bytes_left(dim - d), q + d);
    row.spread[d / 64] = spread(bytes);
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), bytes);
  }
  row.q = q;
  row.bias = -128 * _mm512_reduce_add_epi32(sum);
}

/// A tile's scores, and its weights as bytes in the order of the values.
struct TileScores {
  __m512i dots[kTileTokens / 16];
};
struct TileWeights {
  alignas(64) std::uint8_t bytes[kTileTokens];
};

/// Gives scores to the pages that are not looked at.
template <int N>
inline void clear_unread(const simd::TilePages& tile, TileScores (&scores)[N]) {
  for (std::int64_t p = 0; p < kTilePages; ++p) {
    if (p >= tile.begin && p < tile.end) continue;
    for (int n = 0; n < N; ++n) {
      for (std::int64_t g = 0; g < 4; ++g) scores[n].dots[4 * p + g] = _mm512_setzero_si512();
    }
  }
}

/// One number for each of four rows from one vector for each of N: `op` folds lanes, in any order.
template <int N, typename Op>
inline __m128i reduce_rows(const __m512i (&x)[N], Op op) {
  __m128i by4[4];
  for (int n = 0; n < 4; ++n) {
    const __m512i row = x[n < N ? n : 0];
    const __m256i by8 = op(_mm512_castsi512_si256(row), _mm512_extracti64x4_epi64(row, 1));
    by4[n] = _mm256_castsi256_si128(op(by8, _mm256_permute2x128_si256(by8, by8, 1)));
  }
  const auto narrow = [&](__m128i a, __m128i b) {
    return _mm256_castsi256_si128(op(_mm256_castsi128_si256(a), _mm256_castsi128_si256(b)));
  };
  const __m128i low = narrow(_mm_unpacklo_epi32(by4[0], by4[1]), _mm_unpackhi_epi32(by4[0], by4[1]));
  const __m128i high = narrow(_mm_unpacklo_epi32(by4[2], by4[3]), _mm_unpackhi_epi32(by4[2], by4[3]));
  return narrow(_mm_unpacklo_epi64(low, high), _mm_unpackhi_epi64(low, high));
}

inline __m256i larger_of(__m256i a, __m256i b) { return _mm256_max_epi32(a, b); }
inline __m256i sum_of(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }

/// Bits of the tokens that a row sees of the page whose first token is number `start`.
inline std::uint64_t tokens_seen(const Row& row, std::int64_t start) {
  const std::int64_t first = row.first > start ? row.first - start : 0;
  const std::int64_t last = row.last < start + kPageTokens ? row.last - start : kPageTokens;
  if (first >= last) return 0;
  return (~std::uint64_t{0} << first) & (~std::uint64_t{0} >> (kPageTokens - last));
}

/// Takes out the scores of tokens that the row does not see.
inline void hide_unseen(const Row& row, std::int64_t start, TileScores& scores) {
  if (row.first <= start && row.last >= start + kTileTokens) return;
  const __m512i unseen = _mm512_set1_epi32(simd::kUnseenScore);
  for (std::int64_t p = 0; p < kTilePages; ++p) {
    const std::uint64_t seen = tokens_seen(row, start + p * kPageTokens);
    for (std::int64_t g = 0; g < 4; ++g) {
      __m512i& dots = scores.dots[4 * p + g];
      dots = _mm512_mask_mov_epi32(unseen, static_cast<__mmask16>(seen >> (16 * g)), dots);
    }
  }
}

/// The low bytes of 32 lanes, in the order of exact::value_slot.
inline __m256i pack_weights(__m512i low, __m512i high) {
  const __m512i order = _mm512_castsi256_si512(_mm256_setr_epi32(
      0x24200400, 0x2C280C08, 0x34301410, 0x3C381C18, 0x64604440, 0x6C684C48, 0x74705450, 0x7C785C58));
  return _mm512_castsi512_si256(_mm512_permutex2var_epi8(low, order, high));
}

/// Scores to weights: the middle of the tile, for N rows at once, because one alone waits for its own
/// results.
template <int N>
inline void weigh(TileScores (&scores)[N], std::int64_t start, Row* const* rows, TileWeights (&out)[N],
                  FoldStep (&steps)[N]) {
  __m512i largest[N];
  for (int n = 0; n < N; ++n) {
    hide_unseen(*rows[n], start, scores[n]);
    largest[n] = scores[n].dots[0];
    for (int g = 1; g < 8; ++g) largest[n] = _mm512_max_epi32(largest[n], scores[n].dots[g]);
  }
  const __m128i maximum = reduce_rows(largest, larger_of);
  alignas(16) std::int32_t maxima[4];
  _mm_store_si128(reinterpret_cast<__m128i*>(maxima), maximum);

  State* states[N];
  alignas(16) float units[4] = {};
  __m512i sums[N];
  for (int n = 0; n < N; ++n) {
    const ScoreUnit& score = rows[n]->score;
    const __m512i shift = _mm512_set1_epi32(simd::kScoreMagicBits - maxima[n]);
    const __m512i lowest = _mm512_set1_epi32(score.lowest);
    const __m512 unit = _mm512_set1_ps(score.unit);
    const __m512 base = _mm512_set1_ps(score.base);
    __m512i w[8];
    for (int g = 0; g < 8; ++g) {
      const __m512i below = _mm512_max_epi32(_mm512_add_epi32(scores[n].dots[g], shift), lowest);
      w[g] = attention_weight(below, unit, base);
    }
    sums[n] = _mm512_setzero_si512();
    for (int p = 0; p < 2; ++p) {
      const __m512i bytes = _mm512_inserti64x4(_mm512_castsi256_si512(pack_weights(w[4 * p], w[4 * p + 1])),
                                               pack_weights(w[4 * p + 2], w[4 * p + 3]), 1);
      _mm512_store_si512(out[n].bytes + 64 * p, bytes);
      sums[n] = _mm512_dpbusd_epi32(sums[n], bytes, _mm512_set1_epi8(1));
    }
    units[n] = score.unit;
    states[n] = &rows[n]->chunk;
  }
  const __m128 denominator = _mm_cvtepi32_ps(reduce_rows(sums, sum_of));
  const __m128 reference = _mm_mul_ps(_mm_cvtepi32_ps(maximum), _mm_load_ps(units));
  simd::fold_scalars<Isa, N>(states, reference, denominator, steps);
}

}  // namespace
}  // namespace fieldprint::backend::avx512
