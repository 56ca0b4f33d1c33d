#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <span>

#include "exact/format.h"

/// The scalar definition of every floating-point step in the token path. IEEE-754 binary32, round to
/// nearest even, no contraction: the library is compiled with -ffp-contract=off and fma stands where it is
/// written.
namespace fieldprint::exact {

inline float bits_to_float(std::uint32_t bits) { return std::bit_cast<float>(bits); }
inline std::uint32_t float_to_bits(float value) { return std::bit_cast<std::uint32_t>(value); }

/// Nearest integer, ties to even. |x| ≤ 2^22.
inline std::int32_t round_to_int(float x) {
  return static_cast<std::int32_t>(float_to_bits(x + kRoundMagic) - float_to_bits(kRoundMagic));
}

/// round(x·y) of a non-negative product at most 2^23, rounded once.
inline std::int32_t round_product(float x, float y) {
  return static_cast<std::int32_t>(float_to_bits(std::fma(x, y, kMagic23)) - kMagic23Bits);
}

/// 2^x with x clamped to ±120; relative error at most 1.72e-7 (every float of [-1/2, 1/2] tried), exact at
/// integers. NaN gives an unspecified value.
inline float exp2(float x) {
  x = x < -kExp2Limit ? -kExp2Limit : x;
  x = x > kExp2Limit ? kExp2Limit : x;
  const float shifted = x + kRoundMagic;
  const float f = x - (shifted - kRoundMagic);
  float p = kExp2C5;
  p = std::fma(p, f, kExp2C4);
  p = std::fma(p, f, kExp2C3);
  p = std::fma(p, f, kExp2C2);
  p = std::fma(p, f, kExp2C1);
  p = std::fma(p, f, 1.0F);
  return bits_to_float(float_to_bits(p) + (float_to_bits(shifted) << 23));
}

/// The one shape of a float reduction: the tree over 32 lane-strided partial sums.
inline float reduce_lanes(std::array<float, 32> lanes) {
  for (std::size_t width = 16; width > 0; width /= 2) {
    for (std::size_t lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

/// Sum of squares in that shape; x.size() is a multiple of 32.
inline float sum_of_squares(std::span<const float> x) {
  std::array<float, 32> lanes{};
  for (std::size_t i = 0; i < x.size(); ++i) lanes[i % 32] = std::fma(x[i], x[i], lanes[i % 32]);
  return reduce_lanes(lanes);
}

/// 1/rms, the factor that RMSNorm multiplies a row by; NaN where the squares overflow, so that it is noticed.
inline float inverse_rms(std::span<const float> x, float epsilon) {
  const float mean = sum_of_squares(x) / static_cast<float>(x.size());
  if (!(mean <= kMaxFloat)) return bits_to_float(0x7FC00000U);
  return 1.0F / std::sqrt(mean + epsilon);
}

inline float silu(float x) { return x / (1.0F + exp2(-(x * kLog2E))); }

/// The tanh form of GELU, written with one exponential: x·sigmoid(2·sqrt(2/pi)·(x + 0.044715·x³)).
inline float gelu(float x) {
  const float z = x * std::fma(x * x, kGeluCubic, kGeluLinear);
  return x / (1.0F + exp2(-z));
}

/// Largest magnitude as a float; compared as integers, so that a NaN is larger than everything.
inline float abs_max(std::span<const float> x) {
  std::uint32_t largest = 0;
  for (const float value : x) {
    const std::uint32_t magnitude = float_to_bits(value) & 0x7FFFFFFFU;
    largest = magnitude > largest ? magnitude : largest;
  }
  return bits_to_float(largest);
}

/// How a row with largest magnitude `amax` is quantised to ±`levels`: q = round(x·inverse), x ≈ q·scale.
/// A zero row has inverse and scale 0. A row that is not finite has inverse 0 and a scale that is not finite,
/// so that everything computed from it is NaN and is noticed at the logits.
struct QuantScale {
  float inverse;
  float scale;
};
inline QuantScale quant_scale(float amax, float levels) {
  if (amax < kSmallestAmax) return {0.0F, 0.0F};
  if (!(amax <= kMaxFloat)) return {0.0F, bits_to_float(0x7FC00000U)};
  return {levels / amax, amax / levels};
}

/// Quantised value of x under `inverse`; x·inverse is within ±(levels+1/2) by construction.
/// With inverse 0 the answer is 0 whatever x is.
inline std::int32_t quantise(float x, float inverse) {
  return inverse == 0.0F ? 0 : round_to_int(x * inverse);
}

/// IEEE binary16 to binary32, exact.
inline float from_f16(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t exponent = (half >> 10) & 31U;
  const std::uint32_t mantissa = half & 0x3FFU;
  if (exponent == 31) return bits_to_float(sign | 0x7F800000U | (mantissa << 13));
  if (exponent != 0) return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
  return bits_to_float(sign | float_to_bits(magnitude));
}

/// The binary16 nearest to x, ties to even, as a float. |x| lies in [2^-14, 65504], or x is 0.
inline float round_to_f16(float x) {
  const std::uint32_t bits = float_to_bits(x);
  return bits_to_float((bits + 0xFFFU + ((bits >> 13) & 1U)) & 0xFFFFE000U);
}

/// The query step for a row whose largest magnitude is `amax`, finite, in log2 units: the row is quantised in
/// units of step·2^-22, of which 127 hold it unless the step is the largest there is.
inline std::int32_t query_step(float amax) {
  const float levels = amax * kQueryLevels;
  if (levels >= static_cast<float>(kLargestStep)) return kLargestStep;
  const std::int32_t step = static_cast<std::int32_t>(levels) + 1;
  return step < kSmallestStep ? kSmallestStep : step;
}

/// x as an int8 level, x in units of the scale.
inline std::int8_t clamp_to_level(float x) {
  x = x < -kA8Max ? -kA8Max : x;
  x = x > kA8Max ? kA8Max : x;
  return static_cast<std::int8_t>(round_to_int(x));
}

/// Weight 0 … 254 of a score that lies `below` ≤ 0 from its tile's largest, in units of step·2^-22 in log2:
/// about 254·2^(below·step·2^-22). The exponent, rounded to 2^-10 and read as the bits of a half, is
/// 2^n·(1+f); a polynomial of 1+f mends the mantissa (Schraudolph, Neural Computation 11(4), 1999, gives the
/// first step).
inline std::int32_t attention_weight(std::int32_t below, std::int32_t step) {
  const std::int32_t floor = -(kScoreSpan / step);
  if (below < floor) below = floor;
  const float t = std::fma(kScoreMagic + static_cast<float>(below), static_cast<float>(step) * kStepUnit,
                           kExponentBase - 3.0F * static_cast<float>(step));
  const std::uint32_t half = float_to_bits(t) & 0xFFFFU;
  const float power = from_f16(static_cast<std::uint16_t>(half));
  const float u = from_f16(static_cast<std::uint16_t>(kExponentOne | (half & 0x3FFU)));
  float g = round_to_f16(std::fma(kWeightC2, u, kWeightC1));
  g = round_to_f16(std::fma(g, u, kWeightC0));
  return round_product(power, g);
}

/// Where a page of V keeps token `slot` of 0 … 63: within each 32, so that the scores' accumulators of the
/// tensor cores lie as the operand of the second product.
constexpr std::int32_t value_slot(std::int32_t slot) {
  const std::int32_t t = slot % 32;
  return slot - t + 16 * (t >> 4) + 4 * ((t & 7) >> 1) + 2 * ((t >> 3) & 1) + (t & 1);
}

/// bf16 to binary32, exact.
inline float from_bf16(std::uint16_t bits) { return bits_to_float(static_cast<std::uint32_t>(bits) << 16); }

/// log2 of a positive integer, in binary64 with add, mul, div only: the same on every machine.
/// Absolute error under 1e-13.
double log2_of(std::uint64_t x);

}  // namespace fieldprint::exact
