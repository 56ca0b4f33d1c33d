#include "backend/select.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <thread>

#include "backend/cpu_backend.h"
#include "backend/instruction_sets.h"
#if FIELDPRINT_HAS_CUDA
#include "backend/cuda/cuda_backend.h"
#endif

namespace fieldprint::backend {
namespace {

struct Candidate {
  const char* name;
  std::string (*obstacle)();
  std::unique_ptr<Backend> (*make)(int threads);
};

template <const CpuKernels& kKernels>
std::unique_ptr<Backend> make_cpu(int threads) {
  return make_cpu_backend(kKernels, threads);
}

#if FIELDPRINT_HAS_CUDA
std::unique_ptr<Backend> make_cuda(int) { return make_cuda_backend(); }
#else
std::string cuda_obstacle() { return "needs a build with nvcc on the PATH, which this one is not"; }
std::unique_ptr<Backend> make_cuda(int) { return nullptr; }
#endif

// Fastest first.
constexpr std::array<Candidate, 5> kCandidates = {{
    {"cuda", cuda_obstacle, make_cuda},
    {"amx", amx_obstacle, make_cpu<kAmxKernels>},
    {"avx512", avx512_obstacle, make_cpu<kAvx512Kernels>},
    {"avx2", avx2_obstacle, make_cpu<kAvx2Kernels>},
    {"scalar", [] { return std::string(); }, make_cpu<kScalarKernels>},
}};

std::string known_names() {
  std::string names;
  for (const Candidate& candidate : kCandidates)
    names += (names.empty() ? "" : ", ") + std::string(candidate.name);
  return names;
}

}  // namespace

std::vector<BackendOffer> backend_offers() {
  std::vector<BackendOffer> offers;
  for (const Candidate& candidate : kCandidates) offers.push_back({candidate.name, candidate.obstacle()});
  return offers;
}

std::vector<std::string> available_backends() {
  std::vector<std::string> names;
  for (const BackendOffer& offer : backend_offers()) {
    if (offer.obstacle.empty()) names.push_back(offer.name);
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
    if (!name.empty() && name != candidate.name) continue;
    const std::string obstacle = candidate.obstacle();
    if (obstacle.empty()) return candidate.make(threads);
    if (name.empty()) continue;
    return caller_error(
        fmt::format("backend {} {}; `fieldprint doctor` lists what this machine offers", name, obstacle));
  }
  return caller_error(fmt::format("there is no backend '{}'; choose one of: {}", name, known_names()));
}

}  // namespace fieldprint::backend
