#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>

/// FlashInfer's attention kernels behind one shape of call. Each `plan_…` function does once what
/// FlashInfer's own wrappers do in `plan()`, and returns what they do in `run()`: a call that only enqueues
/// kernels.
namespace peers {

constexpr int kHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kHeadDim = 128;
constexpr float kSoftmaxScale = 0.08838834764831845F;  // 1/√128

using Call = std::function<void(cudaStream_t)>;

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "flashinfer_attention: %s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

inline std::shared_ptr<void> device_memory(std::size_t bytes) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, bytes), "cudaMalloc");
  return {memory, [](void* p) { cudaFree(p); }};
}

inline std::shared_ptr<void> pinned_memory(std::size_t bytes) {
  void* memory = nullptr;
  check(cudaMallocHost(&memory, bytes), "cudaMallocHost");
  return {memory, [](void* p) { cudaFreeHost(p); }};
}

/// Keys and values in pages. `heads_first` is FlashInfer's HND layout [page][head][token][dim], else NHD
/// [page][token][head][dim]. The sequences are of one length, a multiple of the page size.
struct PagedCache {
  void* keys;
  void* values;
  bool fp8;  // e4m3 with scale 1, else bf16
  bool heads_first;
  int batch;
  int tokens;
  int page_size;
  std::int32_t* pages;           // device, [batch][tokens / page_size]
  std::int32_t* page_starts;     // device, [batch + 1]
  std::int32_t* last_page_lens;  // device, [batch]
  std::uint32_t* lengths;        // device, [batch]

  int pages_each() const { return tokens / page_size; }
  std::int64_t page_stride() const { return std::int64_t{page_size} * kKvHeads * kHeadDim; }
  std::int64_t token_stride() const { return heads_first ? kHeadDim : kKvHeads * kHeadDim; }
  std::int64_t head_stride() const { return heads_first ? std::int64_t{page_size} * kHeadDim : kHeadDim; }
};

/// One query a sequence; q and out are [batch][32][128].
struct Decode {
  PagedCache cache;
  __nv_bfloat16* q;
  __nv_bfloat16* out;
};

/// Causal self-attention; q and out are [batch · tokens][32][128], keys and values [batch · tokens][8][128].
struct Prefill {
  int batch;
  int tokens;
  bool fp8;  // q, keys and values: e4m3 with scale 1, else bf16
  void* q;
  void* keys;
  void* values;
  __nv_bfloat16* out;
};

/// Device memory for partial results, which calls of one stream share.
struct Scratch {
  void* memory;
  std::size_t bytes;
};

/// BatchDecodeWithPagedKVCacheWrapper(use_tensor_cores=False).
Call plan_cuda_core_decode(const Decode& decode, Scratch scratch);

/// BatchDecodeWithPagedKVCacheWrapper(use_tensor_cores=True): the FA2 prefill kernel with queries of
/// length 1.
Call plan_tensor_core_decode(const Decode& decode, Scratch scratch);

/// MultiLevelCascadeAttentionWrapper with two levels: `prefix` of one sequence, which all queries see, and
/// each sequence's own pages. Both bf16.
Call plan_cascade_decode(const Decode& decode, const PagedCache& prefix, Scratch scratch);

/// trtllm_batch_decode_with_kv_cache, which on Hopper is the XQA kernel. Pages of kXqaPageSize tokens.
constexpr int kXqaPageSize = 64;
Call plan_xqa_decode_bf16(const Decode& decode);
Call plan_xqa_decode_fp8(const Decode& decode);

/// BatchPrefillWithRaggedKVCacheWrapper(backend="fa3"), the Hopper kernel.
Call plan_hopper_ragged_prefill(const Prefill& prefill);

/// single_prefill_with_kv_cache(backend="fa3"); a batch of 1.
Call plan_hopper_single_prefill(const Prefill& prefill);

}  // namespace peers
