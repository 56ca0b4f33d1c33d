// FlashInfer's XQA decode kernels, which its TensorRT-LLM interface uses on Hopper. Compiled twice, with the
// macros of FlashInfer's own build for one type of cache each (build_flashinfer), beside mha.cu for bf16 and
// mha_sm90.cu for fp8.
#include <mha.h>

#include "flashinfer_calls.h"

namespace peers {
namespace {

static_assert(TOKENS_PER_PAGE == kXqaPageSize && HEAD_ELEMS == kHeadDim &&
              HEAD_GRP_SIZE == kHeads / kKvHeads);

constexpr std::size_t kSemaphoreBytes = 8 << 20;  // as the wrapper divides its workspace
constexpr std::size_t kScratchBytes = 128 << 20;

Call plan(const Decode& decode) {
  std::shared_ptr<void> semaphores = device_memory(kSemaphoreBytes), scratch = device_memory(kScratchBytes);
  check(cudaMemset(semaphores.get(), 0, kSemaphoreBytes), "semaphores");
  int device = 0, processors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  // The kernel divides by the square root of the head size; the wrapper's other scales are 1.
  const float q_scale = kSoftmaxScale * 11.313708498984761F;
  return [=](cudaStream_t stream) {
    const PagedCache& cache = decode.cache;
#if CACHE_ELEM_ENUM == 2
    const auto launch = launchHopperF8MHAFlashInfer;
#else
    const auto launch = launchMHAFlashInfer;
#endif
    launch(static_cast<std::uint32_t>(processors), kKvHeads, /*slidingWinSize=*/0, q_scale, nullptr,
           reinterpret_cast<OutputHead*>(decode.out), reinterpret_cast<const InputHead*>(decode.q),
           /*attentionSinks=*/nullptr, static_cast<GMemCacheHead*>(cache.keys),
           static_cast<GMemCacheHead*>(cache.values), cache.pages, static_cast<std::uint32_t>(cache.tokens),
           cache.lengths, static_cast<std::uint32_t>(cache.batch), /*kvCacheScale=*/1.0F, nullptr,
           static_cast<std::uint32_t*>(semaphores.get()), scratch.get(), /*enable_pdl=*/true,
           static_cast<std::uint64_t>(cache.page_stride()), static_cast<std::uint64_t>(cache.token_stride()),
           static_cast<std::uint64_t>(cache.head_stride()), stream);
  };
}

}  // namespace

#if CACHE_ELEM_ENUM == 2
Call plan_xqa_decode_fp8(const Decode& decode) { return plan(decode); }
#else
Call plan_xqa_decode_bf16(const Decode& decode) { return plan(decode); }
#endif

}  // namespace peers
