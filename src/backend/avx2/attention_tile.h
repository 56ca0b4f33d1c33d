#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "backend/avx2/math.h"
#include "backend/simd/attention_state.h"
#include "exact/format.h"

/// One page of K and V against a few query rows. The page is unpacked once into 16-bit pairs of one token (K)
/// or of one channel (V), as vpmaddwd wants them; then every row uses it. Of each four bytes 0 1 2 3 the pair
/// (0, 2) comes first and (1, 3) second, which spares a shuffle; sums of integers do not mind.
namespace fieldprint::backend::avx2 {
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
  alignas(32) std::int16_t pairs[kMaxDim];
  const std::int8_t* q;
  float scale;
  std::int64_t first;
  std::int64_t last;
  State chunk;
  State group;
  State row;
};

struct UnpackedPage {
  alignas(32) std::int16_t keys[kMaxDim * kTokens];    // [D/4][2][64][2]
  alignas(32) std::int16_t values[kTokens * kMaxDim];  // [64/4][2][D][2]
  alignas(32) std::int32_t value_sums[kMaxDim];        // 32768·Σv, for weights are stored less 32768
  alignas(32) float key_scales[kTokens];
  alignas(32) float value_scales[kTokens];
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

inline void widen_scales(const std::uint8_t* bf16, float* out) {
  for (std::int64_t i = 0; i < kTokens; i += 8) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bf16 + 2 * i));
    store_bytes(out + i, _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
}

inline void unpack_keys(const std::uint8_t* keys, std::int64_t dim, UnpackedPage& out) {
  for (std::int64_t token = 0; token < kTokens; token += 8) {
    for (std::int64_t d = 0; d < dim; d += 16) {
      __m256i columns[4];
      transpose(keys + token * dim + d, dim, columns);
      for (std::int64_t k = 0; k < 4; ++k) {
        const BytePairs pairs = widen_bytes(columns[k]);
        std::int16_t* to = out.keys + (d + 4 * k) * kTokens + 2 * token;
        store_bytes(to, pairs.even);
        store_bytes(to + 2 * kTokens, pairs.odd);
      }
    }
  }
}

inline void unpack_values(const std::uint8_t* values, std::int64_t dim, UnpackedPage& out) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (std::int64_t d = 0; d < dim; d += 8) {
    __m256i sums = _mm256_setzero_si256();
    for (std::int64_t token = 0; token < kTokens; token += 16) {
      __m256i columns[4];
      transpose(values + d * kTokens + token, kTokens, columns);
      for (std::int64_t k = 0; k < 4; ++k) {
        const BytePairs pairs = widen_bytes(columns[k]);
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_add_epi16(pairs.even, pairs.odd), ones));
        std::int16_t* to = out.values + (token + 4 * k) * dim + 2 * d;
        store_bytes(to, pairs.even);
        store_bytes(to + 2 * dim, pairs.odd);
      }
    }
    store_bytes(out.value_sums + d, _mm256_slli_epi32(sums, 15));
  }
}

inline void unpack(const std::uint8_t* page, std::int64_t dim, UnpackedPage& out) {
  const std::uint8_t* values = page + kTokens * dim;
  const std::uint8_t* scales = values + kTokens * dim;
  unpack_keys(page, dim, out);
  unpack_values(values, dim, out);
  widen_scales(scales, out.key_scales);
  widen_scales(scales + 2 * kTokens, out.value_scales);
}

/// A tile's weights less 32768, in the order of the values: for each four tokens 0 2 1 3.
struct TileWeights {
  alignas(32) std::int16_t pairs[kTokens];
  float unit;
};

/// Bits of the lanes that stand for tokens first..last of the tile; lane 0 is token `token`.
inline __m256 seen_mask(std::int32_t token, std::int32_t first, std::int32_t last) {
  const __m256i i = _mm256_add_epi32(_mm256_set1_epi32(token), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  const __m256i before = _mm256_cmpgt_epi32(_mm256_set1_epi32(first), i);
  const __m256i within = _mm256_cmpgt_epi32(_mm256_set1_epi32(last), i);
  return _mm256_castsi256_ps(_mm256_andnot_si256(before, within));
}

inline float reduce_max(__m256 x) {
  const __m128 by4 = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_max_ss(by2, _mm_movehdup_ps(by2)));
}

inline std::int32_t reduce_add(__m128i by4) {
  const __m128i by2 = _mm_add_epi32(by4, _mm_shuffle_epi32(by4, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(by2, _mm_shuffle_epi32(by2, 0xB1)));
}
inline std::int32_t reduce_add(__m256i x) {
  return reduce_add(_mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
}

/// Scores to weights: the middle of the tile. `scores` comes in as the integer dot products of the row.
inline MergeStep weigh(const UnpackedPage& page, const std::int32_t* dots, std::int64_t start, Row& row,
                       TileWeights& out) {
  const std::int32_t first = static_cast<std::int32_t>(row.first > start ? row.first - start : 0);
  const std::int32_t last =
      static_cast<std::int32_t>(row.last < start + kTokens ? row.last - start : kTokens);
  constexpr int kVectors = kTokens / 8;
  __m256 p[kVectors];
  const __m256 lowest = _mm256_set1_ps(bits_to_float(simd::kInfinityBits | 0x80000000U));
  __m256 largest_score = lowest;
  for (int g = 0; g < kVectors; ++g) {
    const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(row.scale), _mm256_load_ps(page.key_scales + 8 * g));
    p[g] = _mm256_mul_ps(_mm256_cvtepi32_ps(load_bytes(dots + 8 * g)), scale);
    const __m256 counted = _mm256_blendv_ps(lowest, p[g], seen_mask(8 * g, first, last));
    largest_score = _mm256_max_ps(counted, largest_score);
  }
  const float maximum = reduce_max(largest_score);

  // 64 · 2^23 = 2^29 fits in the integer sum.
  const __m256 magic = _mm256_set1_ps(exact::kMagic23);
  __m256i sum = _mm256_setzero_si256();
  __m256 largest = _mm256_setzero_ps();
  for (int g = 0; g < kVectors; ++g) {
    p[g] = _mm256_and_ps(exp2(_mm256_sub_ps(p[g], _mm256_set1_ps(maximum))), seen_mask(8 * g, first, last));
    const __m256 fixed = _mm256_fmadd_ps(p[g], _mm256_set1_ps(exact::kDenominatorOne), magic);
    sum = _mm256_add_epi32(sum, _mm256_sub_epi32(_mm256_castps_si256(fixed), _mm256_castps_si256(magic)));
    p[g] = _mm256_mul_ps(p[g], _mm256_load_ps(page.value_scales + 8 * g));
    largest = _mm256_max_ps(p[g], largest);
  }
  const float denominator = static_cast<float>(reduce_add(sum)) * 0x1p-23F;

  // Every value zero or nearly so: the output is zero, and the ratio would not be finite.
  const float top = reduce_max(largest);
  const bool any = top >= exact::kSmallestWeight;
  const float ratio = any ? exact::kWeightMax / top : 0.0F;
  out.unit = any ? top / exact::kWeightMax : 0.0F;
  const __m256i order = _mm256_setr_epi8(0, 1, 8, 9, 4, 5, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1, 0, 1, 8, 9,
                                         4, 5, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
  for (int g = 0; g < kVectors; ++g) {
    // The low 16 bits are the weight; flipping the highest of them takes 32768 off.
    const __m256i bits = _mm256_castps_si256(_mm256_fmadd_ps(p[g], _mm256_set1_ps(ratio), magic));
    const __m256i less = _mm256_xor_si256(bits, _mm256_set1_epi32(0x8000));
    const __m256i halves = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(less, order), 0x08);
    _mm_store_si128(reinterpret_cast<__m128i*>(out.pairs + 8 * g), _mm256_castsi256_si128(halves));
  }
  return merge_scalars<Isa>(row.chunk, maximum, denominator);
}

/// Two 16-bit integers in every lane.
inline __m256i broadcast_pair(const std::int16_t* pair) {
  std::int32_t both = 0;
  std::memcpy(&both, pair, sizeof both);
  return _mm256_set1_epi32(both);
}

/// Dot products of N rows with 32 keys, from token `token` on.
template <int N>
inline void multiply_keys(const UnpackedPage& page, std::int64_t dim, std::int64_t token, Row* const* rows,
                          std::int32_t (*dots)[kTokens]) {
  __m256i sums[N][4];
  for (auto& row : sums) {
    for (auto& sum : row) sum = _mm256_setzero_si256();
  }
  for (std::int64_t d = 0; d < dim; d += 2) {
    const std::int16_t* keys = page.keys + d * kTokens + 2 * token;
    for (int n = 0; n < N; ++n) {
      const __m256i q = broadcast_pair(rows[n]->pairs + d);
      for (int g = 0; g < 4; ++g) {
        sums[n][g] = _mm256_add_epi32(sums[n][g], _mm256_madd_epi16(q, load_bytes(keys + 16 * g)));
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int g = 0; g < 4; ++g) store_bytes(dots[n] + token + 8 * g, sums[n][g]);
  }
}

/// Adds 8·J channels of the tile, from channel d on, to the chunks of N rows.
template <int N, int J>
inline void add_values(const UnpackedPage& page, std::int64_t dim, std::int64_t d, const TileWeights* weights,
                       const MergeStep* steps, Row* const* rows) {
  // Each half of the sum, 32768 · 128 · 64 = 2^28, fits.
  __m256i sums[N][J];
  for (auto& row : sums) {
    for (int j = 0; j < J; ++j) row[j] = load_bytes(page.value_sums + d + 8 * j);
  }
  for (std::int64_t token = 0; token < kTokens; token += 2) {
    const std::int16_t* values = page.values + token * dim + 2 * d;
    for (int n = 0; n < N; ++n) {
      const __m256i w = broadcast_pair(weights[n].pairs + token);
      for (int j = 0; j < J; ++j) {
        sums[n][j] = _mm256_add_epi32(sums[n][j], _mm256_madd_epi16(w, load_bytes(values + 16 * j)));
      }
    }
  }
  for (int n = 0; n < N; ++n) {
    for (int j = 0; j < J; ++j) {
      const __m256 output = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[n][j]), _mm256_set1_ps(weights[n].unit));
      merge_channels<Isa>(steps[n], rows[n]->chunk.output + d + 8 * j, output);
    }
  }
}

/// Merges the page, whose first token is number `start` of the segment, into the chunks of N rows.
template <int N>
inline void attend(const UnpackedPage& page, std::int64_t dim, std::int64_t start, Row* const* rows) {
  alignas(32) std::int32_t dots[N][kTokens];
  multiply_keys<N>(page, dim, 0, rows, dots);
  multiply_keys<N>(page, dim, kTokens / 2, rows, dots);
  TileWeights weights[N];
  MergeStep steps[N];
  for (int n = 0; n < N; ++n) steps[n] = weigh(page, dots[n], start, *rows[n], weights[n]);
  std::int64_t d = 0;
  for (; d + 32 <= dim; d += 32) add_values<N, 4>(page, dim, d, weights, steps, rows);
  for (; d < dim; d += 16) add_values<N, 2>(page, dim, d, weights, steps, rows);
}

/// The same for any number of rows.
inline void attend_rows(const UnpackedPage& page, std::int64_t dim, std::int64_t start, Row* const* rows,
                        std::int64_t count) {
  for (; count >= 2; count -= 2, rows += 2) attend<2>(page, dim, start, rows);
  if (count == 1) attend<1>(page, dim, start, rows);
}

/// One page against a few rows, for the walk over the pages.
struct Tile : Isa {
  using Row = avx2::Row;
  using UnpackedPage = avx2::UnpackedPage;
  static void set_query(Row& row, const std::int8_t* q, std::int64_t dim) { avx2::set_query(row, q, dim); }
  static void unpack(const std::uint8_t* page, std::int64_t dim, UnpackedPage& out) {
    avx2::unpack(page, dim, out);
  }
  static void attend_rows(const UnpackedPage& page, std::int64_t dim, std::int64_t start, Row* const* rows,
                          std::int64_t count) {
    avx2::attend_rows(page, dim, start, rows, count);
  }
};

}  // namespace
}  // namespace fieldprint::backend::avx2
