#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "backend/simd/quantize.h"
#include "exact/format.h"

/// exact/arith.h for vectors of 16 floats: the same operations in the same order, so the same bits.
/// Everything has internal linkage, because code compiled here may not be linked into baseline code.
namespace fieldprint::backend::avx512 {
namespace {

using simd::kBelowHalfUnit;
using simd::kEighthsMagic;
using simd::kHalfBias;
using simd::kHalfMask;
using simd::kMantissa;
using simd::kOneBits;
using simd::query_step;
using simd::value_slot;

inline std::uint32_t float_to_bits(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bits_to_float(std::uint32_t bits) {
  float value = 0.0F;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// exact::exp2 of each lane. max and min return their second operand where one is NaN, so a NaN goes through.
inline __m512 exp2(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-exact::kExp2Limit), x);
  x = _mm512_min_ps(_mm512_set1_ps(exact::kExp2Limit), x);
  const __m512 magic = _mm512_set1_ps(exact::kRoundMagic);
  const __m512 shifted = _mm512_add_ps(x, magic);
  const __m512 f = _mm512_sub_ps(x, _mm512_sub_ps(shifted, magic));
  __m512 p = _mm512_set1_ps(exact::kExp2C5);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(exact::kExp2C4));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(exact::kExp2C3));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(exact::kExp2C2));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(exact::kExp2C1));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0F));
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
}

/// The last steps of exact::attention_weight: the low byte of each lane is its weight. Bits of `score` are
/// those of exact::kScoreMagic plus how far the score lies from the largest, not below the floor.
inline __m512i attention_weight(__m512i score, __m512 unit, __m512 base) {
  const __m512 t = _mm512_fmadd_ps(_mm512_castsi512_ps(score), unit, base);
  // The low 16 bits are a half: its exponent and mantissa as a float's, the bits above them shifted out.
  const __m512i half = _mm512_slli_epi32(_mm512_castps_si512(t), 13);
  const __m512 power = _mm512_castsi512_ps(_mm512_add_epi32(half, _mm512_set1_epi32(kHalfBias)));
  const __m512 u = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
      half, _mm512_set1_epi32(kMantissa), _mm512_set1_epi32(kOneBits), 0xEA));  // (a & b) | c
  const __m512 g = _mm512_fmadd_ps(_mm512_set1_ps(exact::kWeightC2), u, _mm512_set1_ps(exact::kWeightC1));
  // Of the 1024 values that u takes only u = 1 gives a tie, and the even one lies towards zero.
  const __m512i up = _mm512_add_epi32(_mm512_castps_si512(g), _mm512_set1_epi32(kBelowHalfUnit));
  const __m512 rounded = _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(kHalfMask)));
  // The next one lies in [128, 256), where halves are 1/8 apart, as floats are near this constant.
  const __m512 magic = _mm512_set1_ps(kEighthsMagic);
  const __m512 shifted = _mm512_fmadd_ps(rounded, u, _mm512_set1_ps(exact::kWeightC0 + kEighthsMagic));
  const __m512 mended = _mm512_sub_ps(shifted, magic);
  return _mm512_castps_si512(_mm512_fmadd_ps(power, mended, _mm512_set1_ps(exact::kMagic23)));
}

/// This instruction set for code that several share.
struct Isa {
  using Floats = __m512;
  static constexpr std::int64_t kLanes = 16;
  static Floats load(const float* x) { return _mm512_loadu_ps(x); }
  static void store(float* x, Floats v) { _mm512_storeu_ps(x, v); }
  static Floats broadcast(float x) { return _mm512_set1_ps(x); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static __m128 exp2_low(__m128 x) { return _mm512_castps512_ps128(exp2(_mm512_zextps128_ps512(x))); }
};

/// exact::reduce_lanes of the 32 partial sums: `low` holds lanes 0..15, `high` lanes 16..31.
inline float reduce_lanes(__m512 low, __m512 high) {
  const __m512 by16 = _mm512_add_ps(low, high);
  const __m256 by8 = _mm256_add_ps(_mm512_castps512_ps256(by16), _mm512_extractf32x8_ps(by16, 1));
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}

/// exact::inverse_rms of `size` floats, a multiple of 32.
inline float inverse_rms(const float* x, std::int64_t size, float epsilon) {
  __m512 low = _mm512_setzero_ps();
  __m512 high = _mm512_setzero_ps();
  for (std::int64_t i = 0; i < size; i += 32) {
    const __m512 a = _mm512_loadu_ps(x + i);
    const __m512 b = _mm512_loadu_ps(x + i + 16);
    low = _mm512_fmadd_ps(a, a, low);
    high = _mm512_fmadd_ps(b, b, high);
  }
  const float mean = reduce_lanes(low, high) / static_cast<float>(size);
  if (!(mean <= exact::kMaxFloat)) return bits_to_float(0x7FC00000U);
  return 1.0F / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + epsilon)));
}

/// One step of exact::abs_max: magnitudes compare as integers, so that a NaN is larger than everything.
inline __m512i max_magnitude(__m512i largest, __m512 x) {
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF));
  return _mm512_max_epu32(largest, magnitude);
}

/// The largest of the 16 magnitudes, as a float.
inline float reduce_magnitude(__m512i largest) {
  const __m256i by8 =
      _mm256_max_epu32(_mm512_castsi512_si256(largest), _mm512_extracti64x4_epi64(largest, 1));
  const __m128i by4 = _mm_max_epu32(_mm256_castsi256_si128(by8), _mm256_extracti128_si256(by8, 1));
  const __m128i by2 = _mm_max_epu32(by4, _mm_shuffle_epi32(by4, 0x4E));
  const __m128i by1 = _mm_max_epu32(by2, _mm_shuffle_epi32(by2, 0xB1));
  return bits_to_float(static_cast<std::uint32_t>(_mm_cvtsi128_si32(by1)));
}

/// exact::QuantScale.
struct QuantScale {
  float inverse;
  float scale;
};

/// exact::quant_scale.
inline QuantScale quant_scale(float amax, float levels) {
  if (amax < exact::kSmallestAmax) return {0.0F, 0.0F};
  if (!(amax <= exact::kMaxFloat)) return {0.0F, bits_to_float(0x7FC00000U)};
  return {levels / amax, amax / levels};
}

/// exact::quantise of each lane. Conversion rounds to nearest even, as adding the rounding constant does.
inline __m512i quantise(__m512 x, float inverse) {
  const __mmask16 keep = inverse == 0.0F ? 0 : 0xFFFF;
  return _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(x, _mm512_set1_ps(inverse)));
}

}  // namespace
}  // namespace fieldprint::backend::avx512
