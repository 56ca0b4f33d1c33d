#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/attention_state.cuh"

/// One warp's work on one tile for up to 16 query rows, which are the rows of mma.m16n8k32. The order of
/// elements within a product is free, as integer sums are exact, and so is which token a column is: each lane
/// reads 16 bytes of a row of K or V, and its four words are slices of two products.
///
/// A lane is (g, c) = (lane / 4, lane % 4). Of each page it has the scores of tokens 16c … 16c + 15 for rows
/// g and g + 8: block b of eight columns has tokens 16c + 2b and the next. In this order four scores make a
/// word of the weights for each of the lane's four words of V.
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

__device__ __forceinline__ void mma_u8s8(Accumulators& d, std::uint32_t a0, std::uint32_t a1,
                                         std::uint32_t a2, std::uint32_t a3, std::uint32_t b0,
                                         std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(d.x[0]), "+r"(d.x[1]), "+r"(d.x[2]), "+r"(d.x[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Words 0 to 3 of 16 bytes.
struct Slice {
  std::uint32_t w[4];
};
__device__ __forceinline__ Slice load_slice(const std::uint8_t* bytes) {
  const uint4 x = *reinterpret_cast<const uint4*>(bytes);
  return {{x.x, x.y, x.z, x.w}};
}

constexpr std::int32_t kMaskedScore = -(1 << 30);

/// What one query row needs of its step, and the tokens of the segment that it sees.
struct QueryRow {
  float unit;
  float base;               ///< of the exponent
  std::int32_t floor_bits;  ///< the lowest score below the maximum, as the bits of kScoreMagic + score
  std::int32_t first;
  std::int32_t last;

  __device__ void set_step(std::int32_t step) {
    unit = score_unit(step);
    base = __fsub_rn(exact::kExponentBase, __fmul_rn(3.0F, __int2float_rn(step)));
    floor_bits = __float_as_int(exact::kScoreMagic) - exact::kScoreSpan / step;
  }
  __device__ bool sees(std::int32_t token) const { return token >= first && token < last; }

  /// The weights of two scores as the low bytes of two halves; `shift` is kScoreMagic's bits less the
  /// maximum.
  __device__ std::uint32_t weigh(std::int32_t a, std::int32_t b, std::int32_t shift) const {
    const float x = __fmaf_rn(__int_as_float(__viaddmax_s32(a, shift, floor_bits)), unit, base);
    const float y = __fmaf_rn(__int_as_float(__viaddmax_s32(b, shift, floor_bits)), unit, base);
    const std::uint32_t e = __byte_perm(float_to_bits(x), float_to_bits(y), 0x5410);
    const std::uint32_t one_and_fraction = (e & 0x03FF03FFU) | 0x3C003C00U;
    const __half2 power = *reinterpret_cast<const __half2*>(&e);
    const __half2 u = *reinterpret_cast<const __half2*>(&one_and_fraction);
    __half2 w = __hfma2(__float2half2_rn(exact::kWeightC2), u, __float2half2_rn(exact::kWeightC1));
    w = __hfma2(w, u, __float2half2_rn(exact::kWeightC0));
    w = __hfma2(power, w, __float2half2_rn(1024.0F));
    return *reinterpret_cast<const std::uint32_t*>(&w);
  }
};

/// kPad: 64, 128 or 256, at least the head size, and equal to it where kExact.
template <int kPad, bool kExact>
struct Tile {
  static constexpr int kSlices = kPad / 64;  // of a row of K
  static constexpr int kBlocks = kPad / 8;   // of eight channels

  /// Of rows g and g + 8; output [b][i] is channel 8b + 2c + i % 2 of row i / 2.
  struct State {
    float reference[2];
    float denominator[2];
    float output[kBlocks][4];

    __device__ void clear() {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        reference[r] = no_reference();
        denominator[r] = kNothing;
      }
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) {
#pragma unroll
        for (int i = 0; i < 4; ++i) output[b][i] = kNothing;
      }
    }
  };

  using Scores = Accumulators[exact::kTilePages][8];
  /// Word i of row r: four tokens, as operand A.
  struct Weights {
    std::uint32_t w[exact::kTilePages][4][2];
  };

  const std::uint8_t* pages;  // two: K [64][dim], V [dim][64]
  const uint4* queries;       // [kSlices][2 rows][32 lanes], zeros past the head
  int head_dim;
  int lane;

  __device__ int dim() const { return kExact ? kPad : head_dim; }
  __device__ int g() const { return lane / 4; }
  __device__ int c() const { return lane % 4; }

  /// Where a slice of K would reach past the head, the queries are zeros; the row's first slice stands in for
  /// it, as what lies behind may be on its way.
  __device__ void products(Scores& scores) const {
#pragma unroll
    for (int p = 0; p < exact::kTilePages; ++p) {
#pragma unroll
      for (int b = 0; b < 8; ++b) scores[p][b] = {};
    }
    const std::uint8_t* rows = pages + (16 * (g() >> 1) + (g() & 1)) * dim();
#pragma unroll
    for (int h = 0; h < kSlices; ++h) {
      if (!kExact && 64 * h >= dim()) continue;
      const int at = 64 * h + 16 * c();
      const std::uint8_t* own = rows + (kExact || at < dim() ? at : 0);
      const uint4 q = queries[2 * h * 32 + lane];
      const uint4 q8 = queries[(2 * h + 1) * 32 + lane];
#pragma unroll
      for (int p = 0; p < exact::kTilePages; ++p) {
#pragma unroll
        for (int b = 0; b < 8; b += 4) {
          Slice k[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            k[i] = load_slice(own + (2 * exact::kPageTokens * p + 2 * (b + i)) * dim());
          }
#pragma unroll
          for (int i = 0; i < 4; ++i) mma_s8(scores[p][b + i], q.x, q8.x, q.y, q8.y, k[i].w[0], k[i].w[1]);
#pragma unroll
          for (int i = 0; i < 4; ++i) mma_s8(scores[p][b + i], q.z, q8.z, q.w, q8.w, k[i].w[2], k[i].w[3]);
        }
      }
    }
  }

  /// Of both rows and one row of K.
  __device__ void row_products(const std::uint8_t* key, std::int32_t (&dot)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      dot[r] = 0;
#pragma unroll
      for (int h = 0; h < kSlices; ++h) {
        const int at = 64 * h + 16 * c();
        if (!kExact && at >= dim()) continue;
        const Slice k = load_slice(key + at);
        const uint4 q = queries[(2 * h + r) * 32 + lane];
        const std::uint32_t words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          dot[r] = __dp4a(static_cast<int>(k.w[i]), static_cast<int>(words[i]), dot[r]);
        }
      }
      dot[r] += __shfl_xor_sync(kAllLanes, dot[r], 1);
      dot[r] += __shfl_xor_sync(kAllLanes, dot[r], 2);
    }
  }

  /// Weights of one row's scores, r = 0 or 1, and the largest score; kMaskedScore where none is seen. The
  /// tile begins at token `start`; it is `partial` where some row does not see all of it.
  __device__ std::int32_t weigh(Scores& scores, int r, const QueryRow& row, int start, bool partial,
                                Weights& weights) const {
    std::int32_t maximum = kMaskedScore;
#pragma unroll
    for (int p = 0; p < exact::kTilePages; ++p) {
#pragma unroll
      for (int b = 0; b < 8; ++b) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          std::int32_t& s = scores[p][b].x[2 * r + i];
          if (partial && !row.sees(start + exact::kPageTokens * p + 16 * c() + 2 * b + i)) s = kMaskedScore;
          maximum = max(maximum, s);
        }
      }
    }
    maximum = max(maximum, __shfl_xor_sync(kAllLanes, maximum, 1));
    maximum = max(maximum, __shfl_xor_sync(kAllLanes, maximum, 2));
    // Masked scores stay far below this, so that a row that sees nothing has weights 0.
    const std::int32_t shift = __float_as_int(exact::kScoreMagic) - max(maximum, kMaskedScore / 2);
#pragma unroll
    for (int p = 0; p < exact::kTilePages; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int32_t(&low)[4] = scores[p][i].x;
        const std::int32_t(&high)[4] = scores[p][i + 4].x;
        weights.w[p][i][r] = __byte_perm(row.weigh(low[2 * r], low[2 * r + 1], shift),
                                         row.weigh(high[2 * r], high[2 * r + 1], shift), 0x6420);
      }
    }
    return maximum;
  }

  /// Σ w of both rows, as a product with ones.
  __device__ static Accumulators sums(const Weights& weights) {
    constexpr std::uint32_t kOnes = 0x01010101U;
    Accumulators sum = {};
#pragma unroll
    for (int p = 0; p < exact::kTilePages; ++p) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const auto& w = weights.w[p];
        mma_u8s8(sum, w[i][0], w[i][1], w[i + 1][0], w[i + 1][1], kOnes, kOnes);
      }
    }
    return sum;
  }

  /// Folds the tile's outputs into those of a state. Without `both` rows 8 … 15 do not matter. Blocks past
  /// the head stand for the first of their four, and are never stored.
  template <bool kRaised>
  __device__ void add_values(const Weights& weights, const Fold (&folds)[2], bool both, State& state) const {
    constexpr int kTogether = 4;
    const std::uint8_t* own = pages + exact::kPageTokens * (dim() + g()) + 16 * c();
#pragma unroll
    for (int b = 0; b < kBlocks; b += kTogether) {
      if (!kExact && 8 * b >= dim()) continue;
      Accumulators sum[kTogether] = {};
#pragma unroll
      for (int p = 0; p < exact::kTilePages; ++p) {
        const auto& w = weights.w[p];
        Slice v[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int block = kExact || 8 * (b + i) < dim() ? b + i : b;
          v[i] = load_slice(own + exact::kPageTokens * (2 * p * dim() + 8 * block));
        }
#pragma unroll
        for (int s = 0; s < 4; s += 2) {
#pragma unroll
          for (int i = 0; i < kTogether; ++i) {
            mma_u8s8(sum[i], w[s][0], w[s][1], w[s + 1][0], w[s + 1][1], v[i].w[s], v[i].w[s + 1]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
#pragma unroll
        for (int x = 0; x < 4; ++x) {
          if (x >= 2 && !both) continue;
          float& mine = state.output[b + i][x];
          const float next = __int2float_rn(sum[i].x[x]);
          mine = kRaised ? fold(mine, next, folds[x / 2]) : __fmaf_rn(next, folds[x / 2].factor, mine);
        }
      }
    }
  }
};

}  // namespace fieldprint::backend::cuda
