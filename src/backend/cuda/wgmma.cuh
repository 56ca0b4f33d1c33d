#pragma once

#include <cstdint>

/// wgmma.mma_async.m64nNk32 of int8, accumulating into int32 (PTX ISA, "Asynchronous warpgroup level matrix
/// instructions"). d[4·n + i] of lane 4g + t of warp w: rows 16w + g (i < 2) and 16w + g + 8, columns 8n + 2t
/// + i % 2. B is in shared memory, A there too or in registers.
namespace fieldprint::backend::cuda {
namespace {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most kPending groups of this warp are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// Descriptor of B [N][128 bytes] in shared memory, rows in 128-byte swizzle, 1024-byte aligned groups of 8
/// rows.
__device__ __forceinline__ std::uint64_t swizzled_descriptor(std::uint32_t address) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  constexpr std::uint64_t kStride = std::uint64_t{1024 >> 4} << 32;  // from 8 rows to the next 8
  constexpr std::uint64_t kLeading = std::uint64_t{1} << 16;         // not used with this swizzle
  return kSwizzle128 | kStride | kLeading | ((address & 0x3FFFFU) >> 4);
}

// Inline assembly wants each register by its name: lists of the sums d[0] to d[kRegisters - 1] as operands
// with constraint `c`, and of the names that they and what follows them have in the text.
#define WGMMA_SUMS_4_FROM(c, i) c(d[i]), c(d[(i) + 1]), c(d[(i) + 2]), c(d[(i) + 3])
#define WGMMA_SUMS_16_FROM(c, i)                                                         \
  WGMMA_SUMS_4_FROM(c, i), WGMMA_SUMS_4_FROM(c, (i) + 4), WGMMA_SUMS_4_FROM(c, (i) + 8), \
      WGMMA_SUMS_4_FROM(c, (i) + 12)
#define WGMMA_SUMS_4(c) WGMMA_SUMS_4_FROM(c, 0)
#define WGMMA_SUMS_8(c) WGMMA_SUMS_4_FROM(c, 0), WGMMA_SUMS_4_FROM(c, 4)
#define WGMMA_SUMS_16(c) WGMMA_SUMS_16_FROM(c, 0)
#define WGMMA_SUMS_32(c) WGMMA_SUMS_16_FROM(c, 0), WGMMA_SUMS_16_FROM(c, 16)
#define WGMMA_SUMS_64(c) WGMMA_SUMS_32(c), WGMMA_SUMS_16_FROM(c, 32), WGMMA_SUMS_16_FROM(c, 48)
#define WGMMA_SUMS_128(c)                                                                            \
  WGMMA_SUMS_64(c), WGMMA_SUMS_16_FROM(c, 64), WGMMA_SUMS_16_FROM(c, 80), WGMMA_SUMS_16_FROM(c, 96), \
      WGMMA_SUMS_16_FROM(c, 112)
#define WGMMA_NAMES_4 "%0, %1, %2, %3"
#define WGMMA_NAMES_8 \
  WGMMA_NAMES_4       \
  ", "                \
  "%4, %5, %6, %7"
#define WGMMA_NAMES_16 \
  WGMMA_NAMES_8        \
  ", "                 \
  "%8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_NAMES_32 \
  WGMMA_NAMES_16       \
  ", "                 \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_64                                                                    \
  WGMMA_NAMES_32                                                                          \
  ", "                                                                                    \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
  "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_128                                                                      \
  WGMMA_NAMES_64                                                                             \
  ", "                                                                                       \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, "    \
  "%81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "    \
  "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, " \
  "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "     \
  "%127"
#define WGMMA_REGISTERS_AFTER_4 "{%4, %5, %6, %7}, %8"
#define WGMMA_REGISTERS_AFTER_8 "{%8, %9, %10, %11}, %12"
#define WGMMA_REGISTERS_AFTER_16 "{%16, %17, %18, %19}, %20"
#define WGMMA_REGISTERS_AFTER_32 "{%32, %33, %34, %35}, %36"
#define WGMMA_REGISTERS_AFTER_64 "{%64, %65, %66, %67}, %68"
#define WGMMA_REGISTERS_AFTER_128 "{%128, %129, %130, %131}, %132"
#define WGMMA_SHARED_AFTER_32 "%32, %33"
#define WGMMA_WAIT_AFTER_32 "%32"
#define WGMMA_SHARED_AFTER_64 "%64, %65"
#define WGMMA_WAIT_AFTER_64 "%64"

// `use`: ne overwrites the sums, eq adds to them.
#define WGMMA(columns, registers, c, use, types, a_and_b, ...)                                              \
  asm volatile("{\n .reg .pred p;\n setp." use ".b32 p, 0, 0;\n wgmma.mma_async.sync.aligned.m64n" #columns \
               "k32.s32." types " {" WGMMA_NAMES_##registers "}, " a_and_b ", p;\n}"                        \
               : WGMMA_SUMS_##registers(c)                                                                  \
               : __VA_ARGS__)
#define WGMMA_MULTIPLY(columns, registers)                                                                \
  __device__ static __forceinline__ void multiply(int(&d)[registers], const uint4& a, std::uint64_t b) {  \
    WGMMA(columns, registers, "+r", "eq", "s8.s8", WGMMA_REGISTERS_AFTER_##registers, "r"(a.x), "r"(a.y), \
          "r"(a.z), "r"(a.w), "l"(b));                                                                    \
  }
#define WGMMA_ATTENTION(columns, registers)                                                                 \
  __device__ static __forceinline__ void start_shared(int(&d)[registers], std::uint64_t a,                  \
                                                      std::uint64_t b) {                                    \
    WGMMA(columns, registers, "=r", "ne", "s8.s8", WGMMA_SHARED_AFTER_##registers, "l"(a), "l"(b));         \
  }                                                                                                         \
  __device__ static __forceinline__ void add_shared(int(&d)[registers], std::uint64_t a, std::uint64_t b) { \
    WGMMA(columns, registers, "+r", "eq", "s8.s8", WGMMA_SHARED_AFTER_##registers, "l"(a), "l"(b));         \
  }                                                                                                         \
  __device__ static __forceinline__ void start_weights(int(&d)[registers], const unsigned* a,               \
                                                       std::uint64_t b) {                                   \
    WGMMA(columns, registers, "=r", "ne", "u8.s8", WGMMA_REGISTERS_AFTER_##registers, "r"(a[0]), "r"(a[1]), \
          "r"(a[2]), "r"(a[3]), "l"(b));                                                                    \
  }                                                                                                         \
  __device__ static __forceinline__ void add_weights(int(&d)[registers], const unsigned* a,                 \
                                                     std::uint64_t b) {                                     \
    WGMMA(columns, registers, "+r", "eq", "u8.s8", WGMMA_REGISTERS_AFTER_##registers, "r"(a[0]), "r"(a[1]), \
          "r"(a[2]), "r"(a[3]), "l"(b));                                                                    \
  }                                                                                                         \
  template <int kPending>                                                                                   \
  __device__ static __forceinline__ void wait(int(&d)[registers]) {                                         \
    asm volatile("wgmma.wait_group.sync.aligned " WGMMA_WAIT_AFTER_##registers ";"                          \
                 : WGMMA_SUMS_##registers("+r")                                                             \
                 : "n"(kPending)                                                                            \
                 : "memory");                                                                               \
  }

/// For kColumns columns. multiply() adds the product of A in registers, int8. For attention, queries times
/// keys, both in shared memory, and weights (u8, in registers) times values: start_… overwrites the sums,
/// add_… adds; wait() keeps the sums where they are until they are complete.
template <int kColumns>
struct Wgmma;
template <>
struct Wgmma<8> {
  WGMMA_MULTIPLY(8, 4)
};
template <>
struct Wgmma<16> {
  WGMMA_MULTIPLY(16, 8)
};
template <>
struct Wgmma<32> {
  WGMMA_MULTIPLY(32, 16)
};
template <>
struct Wgmma<64> {
  WGMMA_MULTIPLY(64, 32)
  WGMMA_ATTENTION(64, 32)
};
template <>
struct Wgmma<128> {
  WGMMA_MULTIPLY(128, 64)
  WGMMA_ATTENTION(128, 64)
};
template <>
struct Wgmma<256> {
  WGMMA_MULTIPLY(256, 128)
};

#undef WGMMA_ATTENTION
#undef WGMMA_MULTIPLY
#undef WGMMA
#undef WGMMA_WAIT_AFTER_64
#undef WGMMA_SHARED_AFTER_64
#undef WGMMA_WAIT_AFTER_32
#undef WGMMA_SHARED_AFTER_32
#undef WGMMA_REGISTERS_AFTER_128
#undef WGMMA_REGISTERS_AFTER_64
#undef WGMMA_REGISTERS_AFTER_32
#undef WGMMA_REGISTERS_AFTER_16
#undef WGMMA_REGISTERS_AFTER_8
#undef WGMMA_REGISTERS_AFTER_4
#undef WGMMA_NAMES_128
#undef WGMMA_NAMES_64
#undef WGMMA_NAMES_32
#undef WGMMA_NAMES_16
#undef WGMMA_NAMES_8
#undef WGMMA_NAMES_4
#undef WGMMA_SUMS_128
#undef WGMMA_SUMS_64
#undef WGMMA_SUMS_32
#undef WGMMA_SUMS_16
#undef WGMMA_SUMS_8
#undef WGMMA_SUMS_4
#undef WGMMA_SUMS_16_FROM
#undef WGMMA_SUMS_4_FROM

}  // namespace
}  // namespace fieldprint::backend::cuda
