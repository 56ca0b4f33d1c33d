#include "backend/instruction_sets.h"

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

namespace fieldprint::backend {
namespace {

struct Cpuid {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
};

/// All zeros where the processor does not know the leaf.
Cpuid cpuid(unsigned leaf) {
  Cpuid out;
  if (__get_cpuid_count(leaf, 0, &out.eax, &out.ebx, &out.ecx, &out.edx) == 0) return {};
  return out;
}

/// Asked of the processor itself: clang 14 has no name for it in __builtin_cpu_supports. That the operating
/// system keeps the registers is known from AVX2.
bool has_f16c() { return (cpuid(1).ecx & bit_F16C) != 0; }

bool has_avx2() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
         __builtin_cpu_supports("avx512vnni") != 0 && __builtin_cpu_supports("avx512vbmi") != 0;
}

/// Leaf 7's bit 29 of EBX (Intel's SDM, volume 2, CPUID); neither compiler has a name for it.
constexpr unsigned kSha = 1U << 29;

bool has_sha_ni() { return (cpuid(7).ebx & kSha) != 0 && __builtin_cpu_supports("sse4.1") != 0; }

// Neither have the compilers a name for AMX; bits as in Intel's SDM, volume 2, CPUID leaf 7.
constexpr unsigned kAmxTile = 1U << 24;
constexpr unsigned kAmxInt8 = 1U << 25;

bool has_amx() { return (cpuid(7).edx & kAmxTile) != 0 && (cpuid(7).edx & kAmxInt8) != 0; }

/// The state components that the operating system saves; AMX has two, tile configuration and data.
constexpr int kTileData = 18;
constexpr std::uint64_t kTileState = std::uint64_t{0b11} << 17;

__attribute__((target("xsave"))) std::uint64_t saved_state() {
  return (cpuid(1).ecx & bit_OSXSAVE) != 0 ? static_cast<std::uint64_t>(_xgetbv(0)) : 0;
}

/// 0, or why the kernel refuses (arch/x86/include/uapi/asm/prctl.h, Linux 5.16).
int request_tiles() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : errno;
}

}  // namespace

std::string avx2_obstacle() { return has_avx2() ? "" : "needs AVX2, FMA and F16C, which this CPU lacks"; }

std::string avx512_obstacle() {
  return has_avx512() ? "" : "needs AVX-512 F, BW, VL, DQ, VNNI and VBMI, which this CPU lacks";
}

std::string sha_ni_obstacle() {
  return has_sha_ni() ? "" : "needs the SHA extensions and SSE 4.1, which this CPU lacks";
}

std::string amx_obstacle() {
  if (!has_amx()) return "needs AMX tiles with int8, which this CPU lacks";
  if (std::string obstacle = avx512_obstacle(); !obstacle.empty()) return obstacle;
  if ((saved_state() & kTileState) != kTileState) {
    return "needs AMX tile registers, which this operating system or hypervisor does not save";
  }
  static const int refusal = request_tiles();
  if (refusal == 0) return "";
  return std::string("needs AMX tile registers, which the kernel refuses (arch_prctl ARCH_REQ_XCOMP_PERM: ") +
         std::strerror(refusal) + ")";
}

}  // namespace fieldprint::backend
