#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "backend/cuda/device.h"
#include "backend/cuda/launch.cuh"
#include "backend/ops.h"
#include "exact/format.h"

/// What the linear kernels share on the device: fragments, products and the end of a w8r row.
namespace fieldprint::backend::cuda {
namespace {

/// d = a·b + c for a tile of 16 rows (A, weights), 8 tokens (B) and 32 columns. Of lane 4g + t, c[0], c[1]
/// are row g, tokens 2t and 2t + 1; c[2], c[3] row g + 8.
__device__ __forceinline__ void mma_s8(int (&d)[4], const uint4& a, std::uint32_t b0, std::uint32_t b1,
                                       const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

/// Columns of the product: one a token, or with a16 two, the high digits and the low ones, as the rows of q
/// lie.
__host__ __device__ inline int product_columns(const LinearArgs& args) {
  return args.x.format == ActivationFormat::kA16 ? 2 * args.tokens : args.tokens;
}

__device__ __forceinline__ void store(const LinearArgs& args, int token, int row, float y) {
  float* out = args.y + token * args.y_stride + row;
  *out = args.accumulate ? __fadd_rn(*out, y) : y;
}

/// Ends the w8r rows of one row and two adjacent product columns (`column` even).
template <bool kA16>
__device__ __forceinline__ void store_w8r(const LinearArgs& args, int row, int column, int first,
                                          int second) {
  if (row >= args.w.rows) return;
  if constexpr (kA16) {
    const int token = column / 2;
    if (token >= args.tokens) return;
    const float dot = __fmaf_rn(__int2float_rn(first), 256.0F, __int2float_rn(second));
    store(args, token, row, __fmul_rn(dot, __fmul_rn(args.x.scale[token], args.w.row_scale[row])));
  } else {
    const float row_scale = args.w.row_scale[row];
    if (column < args.tokens) {
      store(args, column, row, __fmul_rn(__int2float_rn(first), __fmul_rn(args.x.scale[column], row_scale)));
    }
    if (column + 1 < args.tokens) {
      store(args, column + 1, row,
            __fmul_rn(__int2float_rn(second), __fmul_rn(args.x.scale[column + 1], row_scale)));
    }
  }
}

/// A lane's 8 bytes of a w4g32 block as an A fragment.
__device__ __forceinline__ uint4 w4_fragment(uint2 nibbles) {
  constexpr std::uint32_t kLow = 0x0F0F0F0FU;
  return make_uint4(nibbles.x & kLow, nibbles.y & kLow, nibbles.x >> 4 & kLow, nibbles.y >> 4 & kLow);
}

/// f16 d (low half) and m (high half) of a row.
__device__ __forceinline__ float2 w4_coefficients(std::uint32_t pair) {
  return make_float2(__half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xFFFFU))),
                     __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16))));
}

/// Added as integers to a block's dot product, these are the bits of the float 1.5·2^23 + dot: the conversion
/// costs a subtraction. |dot| ≤ 15·128·32 < 2^22.
constexpr int kMagicDotBits = 0x4B400000;
__device__ __forceinline__ float magic_to_float(int dot) {
  return __fsub_rn(__int_as_float(dot), exact::kRoundMagic);
}

/// Weights are read once: past the first level cache. Zero where not `wanted`; no branch, so that loads stay
/// in flight together.
__device__ __forceinline__ uint4 load_once(const uint4* p, bool wanted) {
  uint4 v;
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %5, 0;\n"
      " mov.b32 %0, 0;\n mov.b32 %1, 0;\n mov.b32 %2, 0;\n mov.b32 %3, 0;\n"
      " @p ld.global.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(p), "r"(static_cast<int>(wanted))
      : "memory");
  return v;
}
__device__ __forceinline__ uint2 load_once(const uint2* p, bool wanted) {
  uint2 v;
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %3, 0;\n mov.b32 %0, 0;\n mov.b32 %1, 0;\n"
      " @p ld.global.L1::no_allocate.L2::256B.v2.u32 {%0,%1}, [%2];\n}"
      : "=&r"(v.x), "=&r"(v.y)
      : "l"(p), "r"(static_cast<int>(wanted))
      : "memory");
  return v;
}

/// What an earlier kernel wrote; not to be moved past the wait for it, nor to its use.
__device__ __forceinline__ std::uint32_t load_word(const void* p) {
  std::uint32_t v;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ float load_float(const float* p) { return __uint_as_float(load_word(p)); }

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void barrier_init(std::uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Waits until the phase of this parity has completed.
__device__ __forceinline__ void barrier_wait(std::uint32_t barrier, int parity) {
  std::uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.b32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

}  // namespace
}  // namespace fieldprint::backend::cuda
