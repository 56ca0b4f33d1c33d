#pragma once

#include <cstdint>

#include "backend/cuda/attention_state.cuh"
#include "backend/cuda/attention_tile.cuh"

/// One warp's work on one tile for 16 query rows, which are the rows of mma.m16n8k32: for prefill, where many
/// rows meet each page. A lane (g, c) = (lane / 4, lane % 4) has rows g and g + 8 and of both the tokens
/// 16c … 16c + 15: the order of K's rows in the products is chosen so, because then the weights already lie
/// as the operand of the second product.
namespace fieldprint::backend::cuda {

/// kPad: 64, 128 or 256, at least the head size, and equal to it where kExact.
template <int kPad, bool kExact>
struct RowTile {
  static constexpr int kSlices = kPad / 64;
  static constexpr int kOutputs = kPad / 2;
  static constexpr int kTokens = 16;

  /// Positions of the segment that a row sees.
  struct Row {
    float scale;
    std::int32_t first;
    std::int32_t last;
  };
  struct Queries {
    Row rows[2];
    std::uint32_t q[kSlices][2][4];
  };
  /// Output i is of row (i / 2) % 2.
  struct State {
    float maximum[2];
    float denominator[2];
    float output[kOutputs];

    __device__ void clear() {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        maximum[r] = no_maximum();
        denominator[r] = kNothing;
      }
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) output[i] = kNothing;
    }
  };
  __device__ static int row_of(int i) { return (i >> 1) & 1; }
  __device__ static int channel(int i, int c) { return 8 * (i >> 2) + 2 * c + (i & 1); }

  using Scores = float[2][kTokens];

  const std::uint8_t* page;
  int dim;
  int g;
  int c;

  /// score = float(Σ q·k), exact: sums begin at the bits of 1.5·2^23, and |Σ| ≤ 2^22.
  __device__ void products(const Queries& queries, Scores& score) const {
    // Column g of the products of pair p (two neighbouring tokens of each lane) is this token.
    const std::uint8_t* keys = page + (16 * (g >> 1) + (g & 1)) * dim + 16 * c;
#pragma unroll
    for (int p = 0; p < kTokens / 2; ++p) {
      Accumulators sums;
#pragma unroll
      for (int i = 0; i < 4; ++i) sums.x[i] = __float_as_int(exact::kRoundMagic);
#pragma unroll
      for (int h = 0; h < kSlices; ++h) {
        if (!kExact && 64 * h >= dim) continue;
        const Slice k = load_slice(keys + 2 * p * dim + 64 * h, kExact || 64 * h + 16 * c < dim);
#pragma unroll
        for (int s = 0; s < 4; s += 2) {
          mma_s8(sums, queries.q[h][0][s], queries.q[h][1][s], queries.q[h][0][s + 1], queries.q[h][1][s + 1],
                 k.w[s], k.w[s + 1]);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[i >> 1][2 * p + (i & 1)] = __fsub_rn(__int_as_float(sums.x[i]), exact::kRoundMagic);
      }
    }
  }

  /// The scales of eight of the lane's tokens.
  __device__ void load_scales(int half, bool of_values, float (&scales)[8]) const {
    const Slice pairs = load_slice(
        page + 128 * dim + (of_values ? 2 * exact::kPageTokens : 0) + 2 * (kTokens * c + 8 * half), true);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scales[2 * i] = bf16_low(pairs.w[i]);
      scales[2 * i + 1] = bf16_high(pairs.w[i]);
    }
  }

  __device__ bool hidden(const Row& row, int start, int i) const {
    const int token = start + kTokens * c + i;
    return token < row.first || token >= row.last;
  }

  struct Softmax {
    float maximum[2];
    float denominator[2];
    float unit[2];
  };
  /// The weights' digits as operand A: word s of row r holds four tokens.
  struct Digits {
    std::uint32_t high[2][4];
    std::uint32_t low[2][4];
  };

  /// Scores to weights p·v_scale, which take their place, and what is known of them.
  __device__ void weights(const Queries& queries, int start, bool partial, Scores& score, Softmax& softmax,
                          float (&largest)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) softmax.maximum[r] = no_maximum();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float scales[8];
      load_scales(half, false, scales);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float& s = score[r][8 * half + i];
          s = __fmul_rn(s, __fmul_rn(queries.rows[r].scale, scales[i]));
          if (partial && hidden(queries.rows[r], start, 8 * half + i)) s = no_maximum();
          softmax.maximum[r] = fmaxf(softmax.maximum[r], s);
        }
      }
    }
#pragma unroll
    for (int lanes = 2; lanes >= 1; lanes /= 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        softmax.maximum[r] = fmaxf(softmax.maximum[r], __shfl_xor_sync(kAllLanes, softmax.maximum[r], lanes));
      }
    }
    // Sums of the bits of 2^23 + p·2^23: the magic number leaves at the end.
    std::uint32_t denominator[2] = {0, 0};
    largest[0] = largest[1] = 0.0F;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float scales[8];
      load_scales(half, true, scales);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float& w = score[r][8 * half + i];
          float p = exp2_below_one(__fsub_rn(w, softmax.maximum[r]));
          if (partial && hidden(queries.rows[r], start, 8 * half + i)) p = 0.0F;
          denominator[r] += float_to_bits(__fmaf_rn(p, exact::kDenominatorOne, exact::kMagic23));
          w = __fmul_rn(p, scales[i]);
          largest[r] = fmaxf(largest[r], w);
        }
      }
    }
#pragma unroll
    for (int lanes = 2; lanes >= 1; lanes /= 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        largest[r] = fmaxf(largest[r], __shfl_xor_sync(kAllLanes, largest[r], lanes));
        denominator[r] += __shfl_xor_sync(kAllLanes, denominator[r], lanes);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const std::uint32_t sum = denominator[r] - exact::kPageTokens * exact::kMagic23Bits;
      softmax.denominator[r] = __fmul_rn(__int2float_rn(static_cast<std::int32_t>(sum)), 0x1p-23F);
    }
  }

  /// The two quotients of each row, a lane one of the four, and the integer weights.
  __device__ Digits quantise_weights(const Scores& weight, const float (&largest)[2],
                                     Softmax& softmax) const {
    const float mine = (c & 1) == 0 ? largest[0] : largest[1];
    const bool unit = (c & 2) != 0;
    const float quotient = __fdiv_rn(unit ? mine : exact::kWeightMax, unit ? exact::kWeightMax : mine);
    Digits digits;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float ratio = __shfl_sync(kAllLanes, quotient, r, 4);
      softmax.unit[r] = __shfl_sync(kAllLanes, quotient, r + 2, 4);
      if (largest[r] < exact::kSmallestWeight) ratio = softmax.unit[r] = 0.0F;
      if (isinf(softmax.maximum[r])) {
        // Nothing seen: with weights 0 and unit -0 the outputs come out as those of the empty state.
        softmax.maximum[r] = no_maximum();
        softmax.denominator[r] = kNothing;
        ratio = 0.0F;
        softmax.unit[r] = kNothing;
      }
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        std::uint32_t integer[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          integer[i] = float_to_bits(__fmaf_rn(weight[r][4 * s + i], ratio, exact::kMagic23));
        }
        const std::uint32_t first = __byte_perm(integer[0], integer[1], 0x5140);
        const std::uint32_t second = __byte_perm(integer[2], integer[3], 0x5140);
        digits.high[r][s] = __byte_perm(first, second, 0x7632);
        digits.low[r][s] = __byte_perm(first, second, 0x5410);
      }
    }
    return digits;
  }

  /// Appends the tile to the state.
  __device__ void attend(const Queries& queries, int start, State& state) const {
    bool partial = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      partial |= queries.rows[r].first > start || queries.rows[r].last < start + exact::kPageTokens;
    }
    partial = __any_sync(kAllLanes, partial);

    Scores score;
    products(queries, score);
    Softmax softmax;
    float largest[2];
    weights(queries, start, partial, score, softmax, largest);
    const Digits digits = quantise_weights(score, largest, softmax);
    MergeFactors factors[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      factors[r] = merge_factors(state.maximum[r], softmax.maximum[r]);
      state.maximum[r] = factors[r].maximum;
      state.denominator[r] = merge(state.denominator[r], softmax.denominator[r], factors[r]);
    }
    const std::uint8_t* values = page + exact::kPageTokens * (dim + g) + 16 * c;
#pragma unroll
    for (int b = 0; b < kPad / 8; ++b) {
      if (!kExact && 8 * b >= dim) continue;
      const Slice v = load_slice(values + 8 * exact::kPageTokens * b, true);
      Accumulators sums[2] = {};
#pragma unroll
      for (int s = 0; s < 4; s += 2) {
        mma_u8s8(sums[0], digits.low[0][s], digits.low[1][s], digits.low[0][s + 1], digits.low[1][s + 1],
                 v.w[s], v.w[s + 1]);
        mma_u8s8(sums[1], digits.high[0][s], digits.high[1][s], digits.high[0][s + 1], digits.high[1][s + 1],
                 v.w[s], v.w[s + 1]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int32_t sum = sums[0].x[i] + 256 * sums[1].x[i];
        const float next = __fmul_rn(__int2float_rn(sum), softmax.unit[i >> 1]);
        float& output = state.output[4 * b + i];
        output = merge(output, next, factors[i >> 1]);
      }
    }
  }
};

}  // namespace fieldprint::backend::cuda
