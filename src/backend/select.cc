#include "backend/select.h"

#include <cpuid.h>

#include <array>
#include <cstdlib>
#include <thread>

#include "backend/cpu_backend.h"

namespace fieldprint::backend {
namespace {

struct Candidate {
  const CpuKernels* kernels;
  bool (*runs_here)();
  const char* needs;
};

/// Asked of the processor itself: clang 14 has no name for it in __builtin_cpu_supports. That the operating
/// system keeps the registers is known from AVX2.
bool has_f16c() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0 && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
         __builtin_cpu_supports("avx512vnni") != 0 && __builtin_cpu_supports("avx512vbmi") != 0;
}

// Fastest first.
const std::array<Candidate, 3> kCandidates = {{
    {&kAvx512Kernels, has_avx512, "AVX-512 F, BW, VL, DQ, VNNI and VBMI"},
    {&kAvx2Kernels, has_avx2, "AVX2, FMA and F16C"},
    {&kScalarKernels, [] { return true; }, "nothing"},
}};

std::string known_names() {
  std::string names;
  for (const Candidate& candidate : kCandidates) {
    names += (names.empty() ? "" : ", ") + std::string(candidate.kernels->name);
  }
  return names;
}

}  // namespace

std::vector<std::string> available_backends() {
  std::vector<std::string> names;
  for (const Candidate& candidate : kCandidates) {
    if (candidate.runs_here()) names.emplace_back(candidate.kernels->name);
  }
  return names;
}

Result<std::unique_ptr<Backend>> select_backend(std::string_view name, int threads) {
  if (name.empty()) {
    const char* forced = std::getenv("FIELDPRINT_BACKEND");
    if (forced != nullptr) name = forced;
  }
  if (threads < 0) return caller_error(fmt::format("{} threads; give 0 for every core, or more", threads));
  if (threads == 0) threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  for (const Candidate& candidate : kCandidates) {
    if (name.empty() ? !candidate.runs_here() : name != candidate.kernels->name) continue;
    if (!candidate.runs_here()) {
      return caller_error(
          fmt::format("backend {} needs {}, which this machine lacks; `fieldprint doctor` lists "
                      "what it offers",
                      name, candidate.needs));
    }
    return make_cpu_backend(*candidate.kernels, threads);
  }
  return caller_error(fmt::format("there is no backend '{}'; choose one of: {}", name, known_names()));
}

}  // namespace fieldprint::backend
