#pragma once

#include <cstdint>

#include "backend/cuda/attention_state.cuh"

/// One warp's work on one tile for 4, 8 or 16 query rows. Rows are the columns of mma.m16n8k32, so that every
/// byte of a page enters a product once. The order of elements within a product is free, as integer sums are
/// exact: each lane reads 16 bytes of a row of K or V, and its four words are the slices of four products.
///
/// A lane is (g, c) = (lane / 4, lane % 4). Scores: a lane holds those of four neighbouring tokens, so that
/// the weights' digits leave as whole words. With at most four rows, half of an mma's columns would be idle;
/// there the two halves of each product's depth carry two different tokens (of K) or channels (of V), and
/// columns 0-3 meet zeros in the second half, columns 4-7 in the first.
namespace fieldprint::backend::cuda {

struct Accumulators {
  std::int32_t x[4];
};

__device__ __forceinline__ void mma_s8(Accumulators& d, std::uint32_t a0, std::uint32_t a1, std::uint32_t a2,
                                       std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d.x[0]), "+r"(d.x[1]), "+r"(d.x[2]), "+r"(d.x[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_s8u8(Accumulators& d, std::uint32_t a0, std::uint32_t a1,
                                         std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                         std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d.x[0]), "+r"(d.x[1]), "+r"(d.x[2]), "+r"(d.x[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_u8s8(Accumulators& d, std::uint32_t a0, std::uint32_t a1,
                                         std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                         std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d.x[0]), "+r"(d.x[1]), "+r"(d.x[2]), "+r"(d.x[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Words 0 to 3 of 16 bytes in shared memory.
struct Slice {
  std::uint32_t w[4];
};
__device__ __forceinline__ Slice load_slice(const std::uint8_t* shared, bool present) {
  uint4 x = make_uint4(0, 0, 0, 0);
  if (present) x = *reinterpret_cast<const uint4*>(shared);
  return {{x.x, x.y, x.z, x.w}};
}

/// exp2 for x ≤ 0, which needs one clamp.
__device__ __forceinline__ float exp2_below_one(float x) {
  return exp2_clamped(fmaxf(x, -exact::kExp2Limit));
}

/// kPad: 64, 128 or 256, at least the head size, and equal to it where kExact. kColumns: 4, 8 or 16 rows.
template <int kPad, int kColumns, bool kExact>
struct Tile {
  static constexpr bool kNarrow = kColumns == 4;
  static constexpr int kSets = kColumns == 16 ? 2 : 1;  // of the columns of one mma
  static constexpr int kRuns = kNarrow ? 1 : 2;         // of four tokens in a lane
  static constexpr int kSlices = kPad / 64;             // of a row of K
  static constexpr int kOutputs = kPad / 32 * (kNarrow ? 4 : 8);
  static constexpr int kDigitBytes = 2 * exact::kPageTokens * (kNarrow ? 4 : 8);

  /// Query row of a lane's columns in C: which positions of the segment it sees.
  struct Row {
    float scale;
    std::int32_t first;
    std::int32_t last;
  };
  /// Eight columns: two rows whose scores the lane holds, and its part of the queries as B fragments.
  struct Queries {
    Row rows[2];
    std::uint32_t q[kSlices][4];
  };
  /// Output i is of row i % 2.
  struct State {
    float maximum[2];
    float denominator[2];
    float output[kOutputs];

    __device__ void clear() {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        maximum[e] = no_maximum();
        denominator[e] = kNothing;
      }
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) output[i] = kNothing;
    }

    __device__ void append(const State& next) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const MergeFactors factors = merge_factors(maximum[e], next.maximum[e]);
        maximum[e] = factors.maximum;
        denominator[e] = merge(denominator[e], next.denominator[e], factors);
#pragma unroll
        for (int i = e; i < kOutputs; i += 2) output[i] = merge(output[i], next.output[i], factors);
      }
    }
  };

  /// Channel of output i of a lane, and the column of its row e in the set.
  __device__ static int channel(int i, int g, int c) {
    const int half = (i >> 1) & 1;
    return kNarrow ? 32 * (i >> 2) + g + 16 * (c >> 1) + 8 * half : 16 * (i >> 2) + g + 8 * half;
  }
  __device__ static int column(int e, int c) { return kNarrow ? 2 * (c & 1) + e : 2 * c + e; }
  /// Column of a lane as part of a B fragment.
  __device__ static int fragment_column(int g) { return kNarrow ? g & 3 : g; }
  /// First token of run r.
  __device__ static int run(int r, int g, int c) { return 4 * (kNarrow ? g + 8 * (c >> 1) : g + 8 * r); }

  using Scores = float[kRuns][2][4];

  const std::uint8_t* page;
  std::uint8_t* digits;
  int dim;
  int g;
  int c;

  /// score[r][e][i] = float(Σ q·k), exact: sums begin at the bits of 1.5·2^23, and |Σ| ≤ 2^22. Odd slices of
  /// the head have sums of their own, so that products wait less for each other.
  __device__ void products(const Queries& queries, Scores& score) const {
    constexpr int kTiles = kNarrow ? 2 : 4;
    constexpr int kChains = kSlices > 1 ? 2 : 1;
    Accumulators sums[kChains][kTiles];
#pragma unroll
    for (int chain = 0; chain < kChains; ++chain) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[chain][t].x[i] = chain == 0 ? __float_as_int(exact::kRoundMagic) : 0;
      }
    }
#pragma unroll
    for (int h = 0; h < kSlices; ++h) {
      const int at = 64 * h + 16 * c;
      if (!kExact && 64 * h >= dim) continue;
      const bool present = kExact || at < dim;
      if constexpr (kNarrow) {
        narrow_products(queries, page + at + 4 * g * dim, present, h, sums[h % kChains]);
      } else {
        wide_products(queries, page + at + 4 * g * dim, present, h, sums[h % kChains]);
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::int32_t sum = sums[0][t].x[i];
        if constexpr (kChains == 2) sum += sums[1][t].x[i];
        const float value = __fsub_rn(__int_as_float(sum), exact::kRoundMagic);
        if constexpr (kNarrow) {
          score[0][i & 1][2 * t + (i >> 1)] = value;
        } else {
          score[i >> 1][i & 1][t] = value;
        }
      }
    }
  }

  __device__ void narrow_products(const Queries& queries, const std::uint8_t* keys, bool present, int h,
                                  Accumulators (&sums)[2]) const {
    Slice k[2][4];
#pragma unroll
    for (int t = 0; t < 2; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        k[t][i] = load_slice(keys + (2 * t + (i & 1) + 32 * (i >> 1)) * dim, present);
      }
    }
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const std::uint32_t q = queries.q[h][s];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        mma_s8(sums[t], k[t][0].w[s], k[t][1].w[s], k[t][2].w[s], k[t][3].w[s], g < 4 ? q : 0, g < 4 ? 0 : q);
      }
    }
  }

  __device__ void wide_products(const Queries& queries, const std::uint8_t* keys, bool present, int h,
                                Accumulators (&sums)[4]) const {
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const Slice low = load_slice(keys + t * dim, present);
      const Slice high = load_slice(keys + (32 + t) * dim, present);
#pragma unroll
      for (int s = 0; s < 4; s += 2) {
        mma_s8(sums[t], low.w[s], high.w[s], low.w[s + 1], high.w[s + 1], queries.q[h][s],
               queries.q[h][s + 1]);
      }
    }
  }

  /// Largest over the lanes that hold the same rows.
  __device__ static void row_max(float (&x)[2]) {
#pragma unroll
    for (int lanes = 16; lanes >= (kNarrow ? 2 : 4); lanes /= 2) {
#pragma unroll
      for (int e = 0; e < 2; ++e) x[e] = fmaxf(x[e], __shfl_xor_sync(kAllLanes, x[e], lanes));
    }
  }

  /// The same, and sums.
  __device__ static void row_max_and_sum(float (&x)[2], std::uint32_t (&sum)[2]) {
#pragma unroll
    for (int lanes = 16; lanes >= (kNarrow ? 2 : 4); lanes /= 2) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        x[e] = fmaxf(x[e], __shfl_xor_sync(kAllLanes, x[e], lanes));
        sum[e] += __shfl_xor_sync(kAllLanes, sum[e], lanes);
      }
    }
  }

  /// True where the row does not see the token.
  __device__ bool hidden(const Row& row, int start, int r, int i) const {
    const int token = start + run(r, g, c) + i;
    return token < row.first || token >= row.last;
  }

  /// Four neighbouring scales, widened.
  __device__ void load_scales(int r, bool of_values, float (&scales)[4]) const {
    const std::uint8_t* at = page + 128 * dim + 2 * run(r, g, c) + (of_values ? 2 * exact::kPageTokens : 0);
    const uint2 pairs = *reinterpret_cast<const uint2*>(at);
    scales[0] = bf16_low(pairs.x);
    scales[1] = bf16_high(pairs.x);
    scales[2] = bf16_low(pairs.y);
    scales[3] = bf16_high(pairs.y);
  }

  /// What a tile's softmax leaves for each of a lane's two rows.
  struct Softmax {
    float maximum[2];
    float denominator[2];
    float unit[2];
  };

  /// From scores to the digits of the integer weights in shared memory.
  __device__ Softmax weigh(const Queries& queries, int start, Scores& score) const {
    bool partial = false;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      partial |= queries.rows[e].first > start || queries.rows[e].last < start + exact::kPageTokens;
    }
    partial = __any_sync(kAllLanes, partial);

    Softmax softmax;
#pragma unroll
    for (int e = 0; e < 2; ++e) softmax.maximum[e] = no_maximum();
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      float scales[4];
      load_scales(r, false, scales);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& s = score[r][e][i];
          s = __fmul_rn(s, __fmul_rn(queries.rows[e].scale, scales[i]));
          if (partial && hidden(queries.rows[e], start, r, i)) s = no_maximum();
          softmax.maximum[e] = fmaxf(softmax.maximum[e], s);
        }
      }
    }
    row_max(softmax.maximum);

    std::uint32_t denominator[2] = {0, 0};
    float largest[2] = {0.0F, 0.0F};
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      float scales[4];
      load_scales(r, true, scales);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& w = score[r][e][i];
          float p = exp2_below_one(__fsub_rn(w, softmax.maximum[e]));
          if (partial && hidden(queries.rows[e], start, r, i)) p = 0.0F;
          denominator[e] += static_cast<std::uint32_t>(round_product(p, exact::kDenominatorOne));
          w = __fmul_rn(p, scales[i]);
          largest[e] = fmaxf(largest[e], w);
        }
      }
    }
    float ratio[2];
    finish(denominator, largest, softmax, ratio);
    store_digits(score, ratio);
    return softmax;
  }

  /// Sums over the row's lanes, and the two quotients. A lane divides once, for one row and one quotient.
  __device__ void finish(std::uint32_t (&denominator)[2], float (&largest)[2], Softmax& softmax,
                         float (&ratio)[2]) const {
    row_max_and_sum(largest, denominator);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      softmax.denominator[e] = __fmul_rn(__int2float_rn(static_cast<std::int32_t>(denominator[e])), 0x1p-23F);
    }
    const float mine = (g & 1) == 0 ? largest[0] : largest[1];
    const bool unit = (g & 2) != 0;
    const float quotient = __fdiv_rn(unit ? mine : exact::kWeightMax, unit ? exact::kWeightMax : mine);
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      ratio[e] = __shfl_sync(kAllLanes, quotient, 4 * e + c);
      softmax.unit[e] = __shfl_sync(kAllLanes, quotient, 4 * (e + 2) + c);
      if (largest[e] < exact::kSmallestWeight) ratio[e] = softmax.unit[e] = 0.0F;
      if (isinf(softmax.maximum[e])) {
        // Nothing seen: with weights 0 and unit -0 the outputs come out as those of the empty state.
        softmax.maximum[e] = no_maximum();
        softmax.denominator[e] = kNothing;
        ratio[e] = 0.0F;
        softmax.unit[e] = kNothing;
      }
    }
  }

  /// High digits of the rows [64] each, then the low ones.
  __device__ void store_digits(const Scores& weight, const float (&ratio)[2]) const {
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        std::uint32_t integer[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          integer[i] = float_to_bits(__fmaf_rn(weight[r][e][i], ratio[e], exact::kMagic23));
        }
        const std::uint32_t low_pairs = __byte_perm(integer[0], integer[1], 0x5140);
        const std::uint32_t high_pairs = __byte_perm(integer[2], integer[3], 0x5140);
        std::uint8_t* at = digits + exact::kPageTokens * column(e, c) + run(r, g, c);
        *reinterpret_cast<std::uint32_t*>(at) = __byte_perm(low_pairs, high_pairs, 0x7632);
        *reinterpret_cast<std::uint32_t*>(at + kDigitBytes / 2) = __byte_perm(low_pairs, high_pairs, 0x5410);
      }
    }
    __syncwarp();
  }

  /// Σ c·v of four channels from 16 tokens of their rows of V: the two digits apart, then together.
  __device__ Accumulators outputs(const Slice (&v)[4], const Slice& high, const Slice& low) const {
    Accumulators sums[2] = {};
    if constexpr (kNarrow) {
#pragma unroll
      for (int s = 0; s < 4; ++s) {
#pragma unroll
        for (int digit = 0; digit < 2; ++digit) {
          const std::uint32_t w = digit == 0 ? low.w[s] : high.w[s];
          mma_s8u8(sums[digit], v[0].w[s], v[1].w[s], v[2].w[s], v[3].w[s], g < 4 ? w : 0, g < 4 ? 0 : w);
        }
      }
    } else {
#pragma unroll
      for (int s = 0; s < 4; s += 2) {
#pragma unroll
        for (int digit = 0; digit < 2; ++digit) {
          const Slice& w = digit == 0 ? low : high;
          mma_s8u8(sums[digit], v[0].w[s], v[1].w[s], v[0].w[s + 1], v[1].w[s + 1], w.w[s], w.w[s + 1]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[0].x[i] += 256 * sums[1].x[i];
    return sums[0];
  }

  /// Appends the tile to the state of one set of columns.
  __device__ void attend(const Queries& queries, int start, State& state) const {
    Scores score;
    products(queries, score);
    const Softmax softmax = weigh(queries, start, score);
    MergeFactors factors[2];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      factors[e] = merge_factors(state.maximum[e], softmax.maximum[e]);
      state.maximum[e] = factors[e].maximum;
      state.denominator[e] = merge(state.denominator[e], softmax.denominator[e], factors[e]);
    }
    const std::uint8_t* own = digits + exact::kPageTokens * fragment_column(g) + 16 * c;
    const Slice high = load_slice(own, true);
    const Slice low = load_slice(own + kDigitBytes / 2, true);

    constexpr int kStep = kNarrow ? 32 : 16;  // channels of one product
#pragma unroll
    for (int b = 0; b < kPad / kStep; ++b) {
      if (!kExact && kStep * b >= dim) continue;
      Slice v[4] = {};
#pragma unroll
      for (int i = 0; i < kStep / 8; ++i) {
        const int row = kStep * b + 8 * i + g;
        v[i] = load_slice(page + exact::kPageTokens * (dim + row) + 16 * c, kExact || row < dim);
      }
      const Accumulators sums = outputs(v, high, low);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float next = __fmul_rn(__int2float_rn(sums.x[i]), softmax.unit[i & 1]);
        float& output = state.output[4 * b + i];
        output = merge(output, next, factors[i & 1]);
      }
    }
    __syncwarp();
  }
};

}  // namespace fieldprint::backend::cuda
