#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "exact/format.h"

/// The canonical arithmetic of exact/arith.h on the device. Rounding is named where an operation could be
/// contracted or relaxed, so that no compiler flag changes a bit. A warp is the 32 lanes of a float
/// reduction.
namespace fieldprint::backend::cuda {

constexpr std::uint32_t kAllLanes = 0xFFFFFFFFU;

__device__ __forceinline__ float bits_to_float(std::uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ std::uint32_t float_to_bits(float value) { return __float_as_uint(value); }

/// Nearest integer, ties to even. |x| ≤ 2^22.
__device__ __forceinline__ std::int32_t round_to_int(float x) {
  return __float_as_int(__fadd_rn(x, exact::kRoundMagic)) - __float_as_int(exact::kRoundMagic);
}

/// 2^x for |x| ≤ 120.
__device__ __forceinline__ float exp2_clamped(float x) {
  const float shifted = __fadd_rn(x, exact::kRoundMagic);
  const float f = __fsub_rn(x, __fsub_rn(shifted, exact::kRoundMagic));
  float p = exact::kExp2C5;
  p = __fmaf_rn(p, f, exact::kExp2C4);
  p = __fmaf_rn(p, f, exact::kExp2C3);
  p = __fmaf_rn(p, f, exact::kExp2C2);
  p = __fmaf_rn(p, f, exact::kExp2C1);
  p = __fmaf_rn(p, f, 1.0F);
  return bits_to_float(float_to_bits(p) + (float_to_bits(shifted) << 23));
}

/// 2^x with x clamped to ±120. NaN gives an unspecified value, another one than on the host.
__device__ __forceinline__ float exp2(float x) {
  return exp2_clamped(fminf(fmaxf(x, -exact::kExp2Limit), exact::kExp2Limit));
}

/// The tree over the 32 lanes; every lane has the result, as addition commutes.
__device__ __forceinline__ float reduce_lanes(float lane) {
#pragma unroll
  for (int width = 16; width > 0; width /= 2) {
    lane = __fadd_rn(lane, __shfl_xor_sync(kAllLanes, lane, width));
  }
  return lane;
}

/// 1/rms from the sum of n squares.
__device__ __forceinline__ float inverse_rms(float sum_of_squares, std::int32_t n, float epsilon) {
  const float mean = __fdiv_rn(sum_of_squares, __int2float_rn(n));
  if (!(mean <= exact::kMaxFloat)) return bits_to_float(0x7FC00000U);
  return __frcp_rn(__fsqrt_rn(__fadd_rn(mean, epsilon)));
}

__device__ __forceinline__ float silu(float x) {
  return __fdiv_rn(x, __fadd_rn(1.0F, exp2(-__fmul_rn(x, exact::kLog2E))));
}

__device__ __forceinline__ float gelu(float x) {
  const float z = __fmul_rn(x, __fmaf_rn(__fmul_rn(x, x), exact::kGeluCubic, exact::kGeluLinear));
  return __fdiv_rn(x, __fadd_rn(1.0F, exp2(-z)));
}

/// Magnitude as an integer: of two, the larger integer is the larger float, and a NaN is larger than all.
__device__ __forceinline__ std::uint32_t magnitude(float x) { return float_to_bits(x) & 0x7FFFFFFFU; }

/// Largest magnitude over the warp's lanes.
__device__ __forceinline__ std::uint32_t warp_max(std::uint32_t magnitude) {
  return __reduce_max_sync(kAllLanes, magnitude);
}

struct QuantScale {
  float inverse;
  float scale;
};
__device__ __forceinline__ QuantScale quant_scale(float amax, float levels) {
  if (amax < exact::kSmallestAmax) return {0.0F, 0.0F};
  if (!(amax <= exact::kMaxFloat)) return {0.0F, bits_to_float(0x7FC00000U)};
  return {__fdiv_rn(levels, amax), __fdiv_rn(amax, levels)};
}

/// False for infinities and NaN: a row with such a scale is flagged.
__device__ __forceinline__ bool is_finite_scale(float scale) { return scale < exact::kMaxFloat; }

/// Quantised value of x under `inverse`; 0 with inverse 0, whatever x is.
__device__ __forceinline__ std::int32_t quantise(float x, float inverse) {
  return inverse == 0.0F ? 0 : round_to_int(__fmul_rn(x, inverse));
}

/// The query step for a finite row with this largest magnitude.
__device__ __forceinline__ std::int32_t query_step(float amax) {
  const float levels = __fmul_rn(amax, exact::kQueryLevels);
  if (levels >= static_cast<float>(exact::kLargestStep)) return exact::kLargestStep;
  return max(__float2int_rz(levels) + 1, exact::kSmallestStep);
}

/// x as an int8 level, x in units of the scale; a NaN gives 0.
__device__ __forceinline__ std::int32_t clamp_to_level(float x) {
  return isnan(x) ? 0 : round_to_int(fminf(fmaxf(x, -exact::kA8Max), exact::kA8Max));
}

/// IEEE binary16 to binary32, exact.
__device__ __forceinline__ float from_f16(std::uint16_t half) { return __half2float(__ushort_as_half(half)); }

}  // namespace fieldprint::backend::cuda
