#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "backend/simd/quantize.h"
#include "exact/format.h"

/// exact/arith.h for vectors of 8 floats: the same operations in the same order, so the same bits.
/// Everything has internal linkage, because code compiled here may not be linked into baseline code.
namespace fieldprint::backend::avx2 {
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

/// 32 consecutive floats, or the 32 lanes of a reduction.
struct Lanes32 {
  __m256 part[4];
};

inline Lanes32 load32(const float* x) {
  return {{_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8), _mm256_loadu_ps(x + 16), _mm256_loadu_ps(x + 24)}};
}

/// exact::exp2 of each lane. max and min return their second operand where one is NaN, so a NaN goes through.
inline __m256 exp2(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-exact::kExp2Limit), x);
  x = _mm256_min_ps(_mm256_set1_ps(exact::kExp2Limit), x);
  const __m256 magic = _mm256_set1_ps(exact::kRoundMagic);
  const __m256 shifted = _mm256_add_ps(x, magic);
  const __m256 f = _mm256_sub_ps(x, _mm256_sub_ps(shifted, magic));
  __m256 p = _mm256_set1_ps(exact::kExp2C5);
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(exact::kExp2C4));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(exact::kExp2C3));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(exact::kExp2C2));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(exact::kExp2C1));
  p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.0F));
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
}

/// The last steps of exact::attention_weight: the low half of each lane is its weight. Bits of `score` are
/// those of exact::kScoreMagic plus how far the score lies from the largest, not below the floor.
inline __m256i attention_weight(__m256i score, __m256 unit, __m256 base) {
  const __m256 t = _mm256_fmadd_ps(_mm256_castsi256_ps(score), unit, base);
  // The low 16 bits are a half: its exponent and mantissa as a float's, the bits above them shifted out.
  const __m256i half = _mm256_slli_epi32(_mm256_castps_si256(t), 13);
  const __m256 power = _mm256_castsi256_ps(_mm256_add_epi32(half, _mm256_set1_epi32(kHalfBias)));
  const __m256i mantissa = _mm256_and_si256(half, _mm256_set1_epi32(kMantissa));
  const __m256 u = _mm256_castsi256_ps(_mm256_or_si256(mantissa, _mm256_set1_epi32(kOneBits)));
  const __m256 g = _mm256_fmadd_ps(_mm256_set1_ps(exact::kWeightC2), u, _mm256_set1_ps(exact::kWeightC1));
  // Of the 1024 values that u takes only u = 1 gives a tie, and the even one lies towards zero.
  const __m256i up = _mm256_add_epi32(_mm256_castps_si256(g), _mm256_set1_epi32(kBelowHalfUnit));
  const __m256 rounded = _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(kHalfMask)));
  // The next one lies in [128, 256), where halves are 1/8 apart, as floats are near this constant.
  const __m256 magic = _mm256_set1_ps(kEighthsMagic);
  const __m256 shifted = _mm256_fmadd_ps(rounded, u, _mm256_set1_ps(exact::kWeightC0 + kEighthsMagic));
  const __m256 mended = _mm256_sub_ps(shifted, magic);
  return _mm256_castps_si256(_mm256_fmadd_ps(power, mended, _mm256_set1_ps(exact::kMagic23)));
}

/// This instruction set for code that several share.
struct Isa {
  using Floats = __m256;
  static constexpr std::int64_t kLanes = 8;
  static Floats load(const float* x) { return _mm256_loadu_ps(x); }
  static void store(float* x, Floats v) { _mm256_storeu_ps(x, v); }
  static Floats broadcast(float x) { return _mm256_set1_ps(x); }
  static Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static __m128 exp2_low(__m128 x) { return _mm256_castps256_ps128(exp2(_mm256_zextps128_ps256(x))); }
};

/// exact::reduce_lanes of the 32 partial sums.
inline float reduce_lanes(const Lanes32& lanes) {
  const __m256 by8 =
      _mm256_add_ps(_mm256_add_ps(lanes.part[0], lanes.part[2]), _mm256_add_ps(lanes.part[1], lanes.part[3]));
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}

/// exact::inverse_rms of `size` floats, a multiple of 32.
inline float inverse_rms(const float* x, std::int64_t size, float epsilon) {
  Lanes32 sums{};
  for (std::int64_t i = 0; i < size; i += 32) {
    const Lanes32 v = load32(x + i);
    for (int j = 0; j < 4; ++j) sums.part[j] = _mm256_fmadd_ps(v.part[j], v.part[j], sums.part[j]);
  }
  const float mean = reduce_lanes(sums) / static_cast<float>(size);
  if (!(mean <= exact::kMaxFloat)) return bits_to_float(0x7FC00000U);
  return 1.0F / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + epsilon)));
}

/// One step of exact::abs_max: magnitudes compare as integers, so that a NaN is larger than everything.
inline __m256i max_magnitude(__m256i largest, __m256 x) {
  const __m256i magnitude = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7FFFFFFF));
  return _mm256_max_epu32(largest, magnitude);
}

/// The largest of the 8 magnitudes, as a float.
inline float reduce_magnitude(__m256i largest) {
  const __m128i by4 = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
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
inline __m256i quantise(__m256 x, float inverse) {
  if (inverse == 0.0F) return _mm256_setzero_si256();
  return _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(inverse)));
}

}  // namespace
}  // namespace fieldprint::backend::avx2
