#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "backend/avx512/math.h"
#include "backend/simd/attention_state.h"
#include "exact/format.h"

/// One page of K and V against a few query rows. The page is unpacked once into an order in which a lane
/// holds four bytes of one token (K) or of one channel (V), as vpdpbusd wants them; then every row uses it.
namespace fieldprint::backend::avx512 {
namespace {

using simd::kMaxDim;
using simd::kTokens;
using simd::Merge;
using simd::merge_channels;
using simd::merge_scalars;
using simd::MergeStep;
using simd::State;

/// One query head of one token, and the tokens [first, last) of the segment that it sees.
struct Row {
  const std::int8_t* q;
  float scale;
  std::int32_t bias;  // -128·Σq: takes back the offset of the unsigned keys
  std::int64_t first;
  std::int64_t last;
  State chunk;
  State group;
  State row;
};

struct UnpackedPage {
  alignas(64) std::uint8_t keys[kMaxDim / 4 * kTokens * 4];    // [D/4][64][4], each byte ^ 0x80
  alignas(64) std::uint8_t values[kTokens / 4 * kMaxDim * 4];  // [64/4][D][4]
  alignas(64) float key_scales[kTokens];
  alignas(64) float value_scales[kTokens];
};

inline void set_query(Row& row, const std::int8_t* q, std::int64_t dim) {
  __m128i sum = _mm_setzero_si128();
  for (std::int64_t d = 0; d < dim; d += 16) {
    sum = _mm_dpbusd_epi32(sum, _mm_set1_epi8(1), _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + d)));
  }
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
  row.q = q;
  row.bias = -128 * _mm_cvtsi128_si32(sum);
}

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

inline void widen_scales(const std::uint8_t* bf16, float* out) {
  for (std::int64_t i = 0; i < kTokens; i += 16) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16 + 2 * i));
    _mm512_store_si512(out + i, _mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
}

inline void unpack(const std::uint8_t* page, std::int64_t dim, UnpackedPage& out) {
  const std::uint8_t* values = page + kTokens * dim;
  const std::uint8_t* scales = values + kTokens * dim;
  for (std::int64_t token = 0; token < kTokens; token += 16) {
    transpose(page + token * dim, dim, dim / 16, out.keys + token * 4, kTokens * 4, _mm512_set1_epi8(-128));
  }
  for (std::int64_t d = 0; d < dim; d += 16) {
    transpose(values + d * kTokens, kTokens, kTokens / 16, out.values + d * 4, dim * 4,
              _mm512_setzero_si512());
  }
  widen_scales(scales, out.key_scales);
  widen_scales(scales + 2 * kTokens, out.value_scales);
}

/// A tile's weights as bytes, in two halves of 32 tokens: low bytes, then high bytes.
struct TileWeights {
  alignas(64) std::uint8_t bytes[2 * kTokens];
  float unit;

  std::int32_t low(std::int64_t quad) const { return dword(quad, 0); }
  std::int32_t high(std::int64_t quad) const { return dword(quad, 32); }

 private:
  std::int32_t dword(std::int64_t quad, std::int64_t offset) const {
    std::int32_t four = 0;
    std::memcpy(&four, bytes + quad / 8 * 64 + offset + quad % 8 * 4, 4);
    return four;
  }
};

/// One number for each of four rows from one vector for each of N: `op` folds lanes, in any order.
template <int N, typename Op>
inline __m128 reduce_rows(const __m512 (&x)[N], Op op) {
  __m128 by4[4];
  for (int n = 0; n < 4; ++n) {
    const __m512 row = x[n < N ? n : 0];
    const __m256 by8 = op(_mm512_castps512_ps256(row), _mm512_extractf32x8_ps(row, 1));
    by4[n] = _mm256_castps256_ps128(op(by8, _mm256_permute2f128_ps(by8, by8, 1)));
  }
  const auto by2 = [&](__m128 first, __m128 second) {
    return op(_mm256_castps128_ps256(_mm_unpacklo_ps(first, second)),
              _mm256_castps128_ps256(_mm_unpackhi_ps(first, second)));
  };
  const __m128 low = _mm256_castps256_ps128(by2(by4[0], by4[1]));
  const __m128 high = _mm256_castps256_ps128(by2(by4[2], by4[3]));
  return _mm256_castps256_ps128(
      op(_mm256_castps128_ps256(_mm_movelh_ps(low, high)), _mm256_castps128_ps256(_mm_movehl_ps(high, low))));
}

inline __m256 larger_of(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
inline __m256 integer_sum(__m256 a, __m256 b) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}

inline __mmask8 empty_lanes(__m128 maximum) {
  const __m128i magnitude = _mm_and_si128(_mm_castps_si128(maximum), _mm_set1_epi32(0x7FFFFFFF));
  return _mm_cmpeq_epi32_mask(magnitude, _mm_set1_epi32(simd::kInfinityBits));
}

/// merge_scalars into the chunks of N rows.
template <int N>
inline void merge_rows(Row* const* rows, __m128 maximum, __m128 denominator, MergeStep (&steps)[N]) {
  alignas(16) float maxima[4] = {};
  alignas(16) float denominators[4] = {};
  for (int n = 0; n < N; ++n) {
    maxima[n] = rows[n]->chunk.maximum;
    denominators[n] = rows[n]->chunk.denominator;
  }
  const __m128 old_maximum = _mm_load_ps(maxima);
  const __m128 old_denominator = _mm_load_ps(denominators);
  const __mmask8 skip = empty_lanes(maximum);
  const __mmask8 copy = static_cast<__mmask8>(empty_lanes(old_maximum) & ~skip);
  const __m128 larger = _mm_max_ps(maximum, old_maximum);
  const __m256 below = _mm256_set_m128(_mm_sub_ps(maximum, larger), _mm_sub_ps(old_maximum, larger));
  const __m256 factors = _mm512_castps512_ps256(exp2(_mm512_zextps256_ps512(below)));
  const __m128 a = _mm256_castps256_ps128(factors);
  const __m128 b = _mm256_extractf128_ps(factors, 1);
  __m128 merged = _mm_fmadd_ps(old_denominator, a, _mm_mul_ps(denominator, b));
  merged = _mm_mask_mov_ps(merged, copy, denominator);
  _mm_store_ps(maxima, _mm_mask_mov_ps(larger, copy, maximum));
  _mm_store_ps(denominators, merged);
  alignas(32) float both[8];
  _mm256_store_ps(both, factors);
  for (int n = 0; n < N; ++n) {
    steps[n].factor = {both[n], both[n + 4]};
    steps[n].how = (copy >> n & 1) != 0 ? Merge::kCopy : Merge::kFold;
    if ((skip >> n & 1) != 0) {
      steps[n].how = Merge::kSkip;
      continue;
    }
    rows[n]->chunk.maximum = maxima[n];
    rows[n]->chunk.denominator = denominators[n];
  }
}

/// Bits first..last of the tile that starts at token `start`; at least one.
inline std::uint64_t tokens_seen(const Row& row, std::int64_t start) {
  const std::int64_t first = row.first > start ? row.first - start : 0;
  const std::int64_t last = row.last < start + kTokens ? row.last - start : kTokens;
  return (~std::uint64_t{0} << first) & (~std::uint64_t{0} >> (kTokens - last));
}

/// Scores to weights: the middle of the tile, for N rows at once, because one alone waits for its own
/// results.
template <int N>
inline void weigh(const UnpackedPage& page, const __m512i (&dots)[N][4], std::int64_t start, Row* const* rows,
                  TileWeights (&out)[N], MergeStep (&steps)[N]) {
  __m512 p[N][4];
  __m512 largest[N];
  std::uint64_t seen[N];
  for (int n = 0; n < N; ++n) {
    seen[n] = tokens_seen(*rows[n], start);
    largest[n] = _mm512_set1_ps(bits_to_float(simd::kInfinityBits | 0x80000000U));
    for (int g = 0; g < 4; ++g) {
      const __m512 scale =
          _mm512_mul_ps(_mm512_set1_ps(rows[n]->scale), _mm512_load_ps(page.key_scales + 16 * g));
      p[n][g] = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[n][g]), scale);
      const __mmask16 mask = static_cast<__mmask16>(seen[n] >> (16 * g));
      largest[n] = _mm512_mask_max_ps(largest[n], mask, p[n][g], largest[n]);
    }
  }
  alignas(16) float maxima[4];
  const __m128 maximum = reduce_rows(largest, larger_of);
  _mm_store_ps(maxima, maximum);

  // 64 · 2^23 = 2^29 fits in the integer sum.
  const __m512 magic = _mm512_set1_ps(exact::kMagic23);
  __m512 sums[N];
  for (int n = 0; n < N; ++n) {
    __m512i sum = _mm512_setzero_si512();
    largest[n] = _mm512_setzero_ps();
    for (int g = 0; g < 4; ++g) {
      const __mmask16 mask = static_cast<__mmask16>(seen[n] >> (16 * g));
      const __m512 below = _mm512_sub_ps(p[n][g], _mm512_set1_ps(maxima[n]));
      p[n][g] = _mm512_maskz_mov_ps(mask, exp2(below));
      const __m512 fixed = _mm512_fmadd_ps(p[n][g], _mm512_set1_ps(exact::kDenominatorOne), magic);
      sum = _mm512_add_epi32(sum, _mm512_sub_epi32(_mm512_castps_si512(fixed), _mm512_castps_si512(magic)));
      p[n][g] = _mm512_mul_ps(p[n][g], _mm512_load_ps(page.value_scales + 16 * g));
      largest[n] = _mm512_max_ps(p[n][g], largest[n]);
    }
    sums[n] = _mm512_castsi512_ps(sum);
  }
  const __m128i denominator = _mm_castps_si128(reduce_rows(sums, integer_sum));
  merge_rows<N>(rows, maximum, _mm_mul_ps(_mm_cvtepi32_ps(denominator), _mm_set1_ps(0x1p-23F)), steps);

  // Every value zero or nearly so: the output is zero, and the ratio would not be finite.
  const __m128 top = reduce_rows(largest, larger_of);
  const __mmask8 any = _mm_cmp_ps_mask(top, _mm_set1_ps(exact::kSmallestWeight), _CMP_GE_OQ);
  alignas(16) float ratios[4];
  alignas(16) float units[4];
  _mm_store_ps(ratios, _mm_maskz_div_ps(any, _mm_set1_ps(exact::kWeightMax), top));
  _mm_store_ps(units, _mm_maskz_div_ps(any, top, _mm_set1_ps(exact::kWeightMax)));
  // Weights are the low 16 bits; bytes 0 and 1 of each lane of two vectors go apart.
  const __m512i apart = _mm512_setr_epi32(
      0x0C080400, 0x1C181410, 0x2C282420, 0x3C383430, 0x4C484440, 0x5C585450, 0x6C686460, 0x7C787470,
      0x0D090501, 0x1D191511, 0x2D292521, 0x3D393531, 0x4D494541, 0x5D595551, 0x6D696561, 0x7D797571);
  for (int n = 0; n < N; ++n) {
    out[n].unit = units[n];
    const __m512 ratio = _mm512_set1_ps(ratios[n]);
    __m512i w[4];
    for (int g = 0; g < 4; ++g) w[g] = _mm512_castps_si512(_mm512_fmadd_ps(p[n][g], ratio, magic));
    _mm512_store_si512(out[n].bytes, _mm512_permutex2var_epi8(w[0], apart, w[1]));
    _mm512_store_si512(out[n].bytes + 64, _mm512_permutex2var_epi8(w[2], apart, w[3]));
  }
}

/// Adds 16·J channels of the tile, from channel d on, to the chunks of N rows.
template <int N, int J>
inline void add_values(const UnpackedPage& page, std::int64_t dim, std::int64_t d, const TileWeights* weights,
                       const MergeStep* steps, Row* const* rows) {
  // 65535 · 128 · 64 < 2^30 fits.
  __m512i sums[N][J];
  for (auto& row : sums) {
    for (auto& sum : row) sum = _mm512_setzero_si512();
  }
  const auto pass = [&](bool high) {
    for (std::int64_t quad = 0; quad < kTokens / 4; ++quad) {
      const std::uint8_t* values = page.values + (quad * dim + d) * 4;
      for (int n = 0; n < N; ++n) {
        const __m512i w = _mm512_set1_epi32(high ? weights[n].high(quad) : weights[n].low(quad));
        for (int j = 0; j < J; ++j) {
          sums[n][j] = _mm512_dpbusd_epi32(sums[n][j], w, _mm512_load_si512(values + 64 * j));
        }
      }
    }
  };
  pass(true);
  for (auto& row : sums) {
    for (auto& sum : row) sum = _mm512_slli_epi32(sum, 8);
  }
  pass(false);
  for (int n = 0; n < N; ++n) {
    for (int j = 0; j < J; ++j) {
      const __m512 output = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[n][j]), _mm512_set1_ps(weights[n].unit));
      merge_channels<Isa>(steps[n], rows[n]->chunk.output + d + 16 * j, output);
    }
  }
}

/// Merges the page, whose first token is number `start` of the segment, into the chunks of N rows.
template <int N>
inline void attend(const UnpackedPage& page, std::int64_t dim, std::int64_t start, Row* const* rows) {
  __m512i dots[N][4];
  for (int n = 0; n < N; ++n) {
    for (auto& dot : dots[n]) dot = _mm512_set1_epi32(rows[n]->bias);
  }
  for (std::int64_t quad = 0; quad < dim / 4; ++quad) {
    const std::uint8_t* keys = page.keys + quad * kTokens * 4;
    for (int n = 0; n < N; ++n) {
      std::int32_t four = 0;
      std::memcpy(&four, rows[n]->q + 4 * quad, 4);
      for (int g = 0; g < 4; ++g) {
        dots[n][g] =
            _mm512_dpbusd_epi32(dots[n][g], _mm512_load_si512(keys + 64 * g), _mm512_set1_epi32(four));
      }
    }
  }
  TileWeights weights[N];
  MergeStep steps[N];
  weigh<N>(page, dots, start, rows, weights, steps);
  std::int64_t d = 0;
  for (; d + 64 <= dim; d += 64) add_values<N, 4>(page, dim, d, weights, steps, rows);
  for (; d + 32 <= dim; d += 32) add_values<N, 2>(page, dim, d, weights, steps, rows);
  for (; d < dim; d += 16) add_values<N, 1>(page, dim, d, weights, steps, rows);
}

/// The same for any number of rows.
inline void attend_rows(const UnpackedPage& page, std::int64_t dim, std::int64_t start, Row* const* rows,
                        std::int64_t count) {
  while (count > 0) {
    // Four at a time, but 9 rows as 3 + 3 + 3 rather than 4 + 4 + 1.
    const std::int64_t turns = (count + 3) / 4;
    const std::int64_t now = (count + turns - 1) / turns;
    if (now == 4) attend<4>(page, dim, start, rows);
    if (now == 3) attend<3>(page, dim, start, rows);
    if (now == 2) attend<2>(page, dim, start, rows);
    if (now == 1) attend<1>(page, dim, start, rows);
    rows += now;
    count -= now;
  }
}

/// One page against a few rows, for the walk over the pages.
struct Tile : Isa {
  using Row = avx512::Row;
  using UnpackedPage = avx512::UnpackedPage;
  static void set_query(Row& row, const std::int8_t* q, std::int64_t dim) { avx512::set_query(row, q, dim); }
  static void unpack(const std::uint8_t* page, std::int64_t dim, UnpackedPage& out) {
    avx512::unpack(page, dim, out);
  }
  static void attend_rows(const UnpackedPage& page, std::int64_t dim, std::int64_t start, Row* const* rows,
                          std::int64_t count) {
    avx512::attend_rows(page, dim, start, rows, count);
  }
};

}  // namespace
}  // namespace fieldprint::backend::avx512
