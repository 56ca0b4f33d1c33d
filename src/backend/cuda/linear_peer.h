#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdint>
#include <memory>

/// cuBLASLt's int8 product of the shape of a linear layer, for comparison. The library is looked for at run
/// time.
namespace fieldprint::backend::cuda {

class Int8Peer {
 public:
  /// Null without the library, or where it has no algorithm for the shape.
  static std::unique_ptr<Int8Peer> create(std::int64_t rows, std::int64_t cols, std::int64_t tokens) {
    auto peer = std::unique_ptr<Int8Peer>(new Int8Peer);
    return peer->load() && peer->plan(rows, cols, tokens) ? std::move(peer) : nullptr;
  }

  /// sums [tokens][rows] = tokens [tokens][cols] times the transpose of weights [rows][cols].
  void run(const void* weights, const void* tokens, std::int32_t* sums, cudaStream_t stream) const {
    const std::int32_t one = 1;
    const std::int32_t zero = 0;
    matmul_(handle_, operation_, &one, weights, a_, tokens, b_, &zero, sums, c_, sums, c_, &algorithm_,
            workspace_, kWorkspaceBytes, stream);
  }

  ~Int8Peer() { cudaFree(workspace_); }
  Int8Peer(const Int8Peer&) = delete;
  Int8Peer& operator=(const Int8Peer&) = delete;

 private:
  static constexpr std::size_t kWorkspaceBytes = std::size_t{64} << 20;

  Int8Peer() = default;

  template <typename F>
  static bool find(void* library, const char* name, F*& function) {
    function = reinterpret_cast<F*>(dlsym(library, name));
    return function != nullptr;
  }

  bool load() {
    void* library = dlopen("libcublasLt.so.13", RTLD_NOW);
    if (library == nullptr) library = dlopen("libcublasLt.so", RTLD_NOW);
    if (library == nullptr) return false;
    decltype(cublasLtCreate)* create_handle = nullptr;
    return find(library, "cublasLtCreate", create_handle) && find(library, "cublasLtMatmul", matmul_) &&
           find(library, "cublasLtMatmulDescCreate", desc_create_) &&
           find(library, "cublasLtMatmulDescSetAttribute", desc_set_) &&
           find(library, "cublasLtMatrixLayoutCreate", layout_create_) &&
           find(library, "cublasLtMatmulPreferenceCreate", preference_create_) &&
           find(library, "cublasLtMatmulPreferenceSetAttribute", preference_set_) &&
           find(library, "cublasLtMatmulAlgoGetHeuristic", heuristic_) &&
           create_handle(&handle_) == CUBLAS_STATUS_SUCCESS &&
           cudaMalloc(&workspace_, kWorkspaceBytes) == cudaSuccess;
  }

  bool plan(std::int64_t rows, std::int64_t cols, std::int64_t tokens) {
    const auto m = static_cast<std::uint64_t>(rows);
    const auto k = static_cast<std::uint64_t>(cols);
    const auto n = static_cast<std::uint64_t>(tokens);
    const cublasOperation_t transposed = CUBLAS_OP_T;
    desc_create_(&operation_, CUBLAS_COMPUTE_32I, CUDA_R_32I);
    desc_set_(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    layout_create_(&a_, CUDA_R_8I, k, m, cols);
    layout_create_(&b_, CUDA_R_8I, k, n, cols);
    layout_create_(&c_, CUDA_R_32I, m, n, rows);
    cublasLtMatmulPreference_t preference = nullptr;
    preference_create_(&preference);
    preference_set_(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &kWorkspaceBytes,
                    sizeof kWorkspaceBytes);
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    heuristic_(handle_, operation_, a_, b_, c_, c_, preference, 1, &result, &found);
    algorithm_ = result.algo;
    return found == 1;
  }

  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t a_ = nullptr;
  cublasLtMatrixLayout_t b_ = nullptr;
  cublasLtMatrixLayout_t c_ = nullptr;
  cublasLtMatmulAlgo_t algorithm_{};
  void* workspace_ = nullptr;
  decltype(cublasLtMatmul)* matmul_ = nullptr;
  decltype(cublasLtMatmulDescCreate)* desc_create_ = nullptr;
  decltype(cublasLtMatmulDescSetAttribute)* desc_set_ = nullptr;
  decltype(cublasLtMatrixLayoutCreate)* layout_create_ = nullptr;
  decltype(cublasLtMatmulPreferenceCreate)* preference_create_ = nullptr;
  decltype(cublasLtMatmulPreferenceSetAttribute)* preference_set_ = nullptr;
  decltype(cublasLtMatmulAlgoGetHeuristic)* heuristic_ = nullptr;
};

}  // namespace fieldprint::backend::cuda
