#pragma once

#include <cstdint>

#include "backend/cuda/attention_state.cuh"

/// A warp's arithmetic on a tile of 128 tokens for 16 query rows, as wgmma's accumulators lie: lane 4g + t
/// has rows g and g + 8, and of both the scores of tokens (the outputs of channels) 8n + 2t and 8n + 2t + 1;
/// element 4n + i belongs to the lane's row i / 2.
namespace fieldprint::backend::cuda {
namespace {

constexpr int kTile = exact::kTileTokens;
constexpr int kScores = kTile / 2;                    ///< of a lane
constexpr int kWeightWords = kScores / 4;             ///< its weights, four to a word
constexpr std::int32_t kMasked = -(1 << 30);          ///< below every score, far enough for weight 0
constexpr std::int32_t kScoreMagicBits = 0x4B400000;  ///< of kScoreMagic

/// What the scores of a lane's two rows are turned into weights with.
struct RowUnits {
  float unit[2];          ///< log2 units of a score of 1
  std::int32_t floor[2];  ///< kScoreMagicBits less the distance at which scores are clamped
};

constexpr std::uint32_t both_halves(std::uint32_t half) { return half | half << 16; }
constexpr std::uint32_t kC2 = both_halves(0x5333);  // kWeightC2 and so on as halves
constexpr std::uint32_t kC1 = both_halves(0xD961);
constexpr std::uint32_t kC0 = both_halves(0x5DC2);
constexpr std::uint32_t kWhole = both_halves(0x6400);  // 1024, which leaves integers in the low byte
static_assert(exact::kWeightC2 == 57.59375F && exact::kWeightC1 == -172.125F && exact::kWeightC0 == 368.5F);

__device__ __forceinline__ std::uint32_t half2_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

/// exact::attention_weight of two scores, in the low byte of each half, from the floats whose low halves are
/// the exponents.
__device__ __forceinline__ std::uint32_t two_weights(float first, float second) {
  const std::uint32_t power = __byte_perm(float_to_bits(first), float_to_bits(second), 0x5410);
  std::uint32_t u;  // (power & 0x03FF03FF) | 0x3C003C00, in one instruction
  asm("lop3.b32 %0, %1, 0x03FF03FF, %2, 0xEA;" : "=r"(u) : "r"(power), "r"(0x3C003C00U));
  const std::uint32_t g = half2_fma(half2_fma(kC2, u, kC1), u, kC0);
  return half2_fma(power, g, kWhole);
}

__device__ __forceinline__ std::int32_t quad_max(std::int32_t x) {
  x = max(x, __shfl_xor_sync(kAllLanes, x, 1));
  return max(x, __shfl_xor_sync(kAllLanes, x, 2));
}

/// Largest scores of the two rows.
__device__ __forceinline__ void largest_scores(const std::int32_t (&s)[kScores], std::int32_t (&largest)[2]) {
  std::int32_t part[4] = {s[0], s[2], s[4], s[6]};
#pragma unroll
  for (int n = 0; n < kScores / 4; ++n) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      std::int32_t& mine = part[2 * (n & 1) + r];
      mine = __vimax3_s32(s[4 * n + 2 * r], s[4 * n + 2 * r + 1], mine);
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) largest[r] = quad_max(max(part[r], part[2 + r]));
}

/// Turns scores into weights, which are the A operand of the product with V: four words for each 32 tokens;
/// word w is of row w % 2. `sums`: of the lane's weights of each row.
__device__ __forceinline__ void weigh(const std::int32_t (&s)[kScores], const RowUnits& rows,
                                      const std::int32_t (&largest)[2],
                                      std::uint32_t (&weights)[kWeightWords], std::uint32_t (&sums)[2]) {
  std::int32_t shift[2];
  float base[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    shift[r] = kScoreMagicBits - largest[r];
    base[r] = __fmaf_rn(rows.unit[r], -exact::kScoreMagic, exact::kExponentBase);  // exact
    sums[r] = 0;
  }
#pragma unroll
  for (int w = 0; w < kWeightWords; ++w) {
    const int r = w & 1;
    const int first = 16 * (w >> 2) + 8 * ((w >> 1) & 1) + 2 * r;
    float t[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // The maximum is subtracted, the difference clamped and made a float by one instruction.
      const std::int32_t bits = __viaddmax_s32(s[first + 4 * (i >> 1) + (i & 1)], shift[r], rows.floor[r]);
      t[i] = __fmaf_rn(__int_as_float(bits), rows.unit[r], base[r]);
    }
    weights[w] = __byte_perm(two_weights(t[0], t[1]), two_weights(t[2], t[3]), 0x6420);
    sums[r] = __dp4a(weights[w], 0x01010101U, sums[r]);
  }
}

/// Sums over the quad.
__device__ __forceinline__ void quad_sums(const std::uint32_t (&lane)[2], float (&sums)[2]) {
  // Both are below 2^16: one word holds them.
  std::uint32_t pair = lane[0] + lane[1] * 0x10000U;
  pair += __shfl_xor_sync(kAllLanes, pair, 1);
  pair += __shfl_xor_sync(kAllLanes, pair, 2);
  sums[0] = __uint2float_rn(pair & 0xFFFFU);
  sums[1] = __uint2float_rn(pair >> 16);
}

/// Hides the tokens outside [first, last) of each row, counted from this lane's first token of the tile.
__device__ __forceinline__ void mask(std::int32_t (&s)[kScores], const std::int32_t (&first)[2],
                                     const std::int32_t (&last)[2]) {
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    const int r = (i >> 1) & 1;
    const int token = 8 * (i >> 2) + (i & 1);
    if (token < first[r] || token >= last[r]) s[i] = kMasked;
  }
}

/// References and denominators of a lane's two rows. A row of nothing has reference -inf.
struct RowSoftmax {
  float reference[2];
  float denominator[2];
};

/// How a part joins a lane's two rows; the kind is the same for a whole warp.
struct Joins {
  enum Kind : std::uint8_t {
    kCopy,    ///< the part is the first one
    kAdd,     ///< times a factor it is added
    kGeneral  ///< either, or what was there is scaled, or there is nothing to join, as the flags say
  };
  Kind kind;
  std::uint32_t flags;  ///< bit r: row r is raised; bit 2 + r: nothing joins it; bit 4: the part is the first
  float factor[2];

  __device__ bool first() const { return (flags & 16U) != 0; }
  __device__ float fold(float mine, float next, int r) const {
    const bool raised = (flags >> r & 1U) != 0;
    const float sum = __fmaf_rn(raised ? mine : next, factor[r], raised ? next : mine);
    return (flags >> (2 + r) & 1U) != 0 ? mine : sum;
  }
};

/// exp2 of two numbers that the four lanes of a quad share.
__device__ __forceinline__ void quad_exp2(const float (&x)[2], bool odd_lane, float (&y)[2]) {
  const float mine = exp2(odd_lane ? x[1] : x[0]);
  y[0] = __shfl_sync(kAllLanes, mine, 0, 2);
  y[1] = __shfl_sync(kAllLanes, mine, 1, 2);
}

/// Joins a part to rows, or with `first` takes it as the first one. Where it is `nothing`, what else it says
/// does not count.
__device__ __forceinline__ Joins join(RowSoftmax& mine, const RowSoftmax& next, bool first,
                                      const bool (&nothing)[2], bool odd_lane) {
  float x[2];
  bool raised[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (first) {
      mine.reference[r] = next.reference[r];
      mine.denominator[r] = 0.0F;
    }
    raised[r] = next.reference[r] > __fadd_rn(mine.reference[r], exact::kFoldHeadroom);
    x[r] = __fsub_rn(next.reference[r], mine.reference[r]);
  }
  Joins joins{first ? Joins::kCopy : Joins::kAdd, 0, {}};
  const bool rare = __any_sync(kAllLanes, raised[0] || raised[1] || nothing[0] || nothing[1]) != 0;
  if (rare) {
    joins.kind = Joins::kGeneral;
    joins.flags = first ? 16U : 0U;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (nothing[r]) {
        joins.flags |= 4U << r;
        if (first) mine.reference[r] = no_reference();
      } else if (raised[r]) {
        joins.flags |= 1U << r;
        x[r] = -x[r];
        mine.reference[r] = next.reference[r];
      }
    }
  }
  quad_exp2(x, odd_lane, joins.factor);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    mine.denominator[r] = rare ? joins.fold(mine.denominator[r], next.denominator[r], r)
                               : __fmaf_rn(next.denominator[r], joins.factor[r], mine.denominator[r]);
  }
  return joins;
}

/// Joins a tile's sums to the chunk's outputs.
template <int kCount>
__device__ __forceinline__ void join_tile(float (&output)[kCount], const std::int32_t (&sums)[kCount],
                                          const Joins& joins) {
  if (joins.kind == Joins::kAdd) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      output[i] = __fmaf_rn(__int2float_rn(sums[i]), joins.factor[(i >> 1) & 1], output[i]);
    }
  } else if (joins.kind == Joins::kCopy) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) output[i] = __int2float_rn(sums[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      // -0 is what leaves every float as it is when added.
      const float mine = joins.first() ? kNothing : output[i];
      output[i] = joins.fold(mine, __int2float_rn(sums[i]), (i >> 1) & 1);
    }
  }
}

/// Joins a whole part's outputs to others of four neighbouring elements.
__device__ __forceinline__ float4 join_outputs(const float4& mine, const float* next, const Joins& joins) {
  if (joins.kind == Joins::kAdd) {
    return make_float4(
        __fmaf_rn(next[0], joins.factor[0], mine.x), __fmaf_rn(next[1], joins.factor[0], mine.y),
        __fmaf_rn(next[2], joins.factor[1], mine.z), __fmaf_rn(next[3], joins.factor[1], mine.w));
  }
  return make_float4(joins.fold(mine.x, next[0], 0), joins.fold(mine.y, next[1], 0),
                     joins.fold(mine.z, next[2], 1), joins.fold(mine.w, next[3], 1));
}

}  // namespace
}  // namespace fieldprint::backend::cuda
