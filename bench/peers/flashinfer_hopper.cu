// FlashInfer's prefill kernel for Hopper (FlashAttention-3's design, over CUTLASS).
#include <cutlass/numeric_types.h>

#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/quantization/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>
#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <vector>

#include "flashinfer_calls.h"

namespace peers {
namespace {

using Out = cutlass::bfloat16_t;
using flashinfer::GetPtrFromBaseOffset;
using flashinfer::MaskMode;

constexpr std::size_t kPlanBytes = 8 << 20;

/// What the parameters of both wrappers have in common.
template <typename Params>
Params common_params(const Prefill& prefill) {
  Params params{};
  params.q_ptr = static_cast<typename Params::DTypeQ*>(prefill.q);
  params.k_ptr = static_cast<typename Params::DTypeKV*>(prefill.keys);
  params.v_ptr = static_cast<typename Params::DTypeKV*>(prefill.values);
  params.o_ptr = reinterpret_cast<Out*>(prefill.out);
  params.additional_params.sm_scale = kSoftmaxScale;
  params.q_stride_n = params.o_stride_n = kHeads * kHeadDim;
  params.k_stride_n = params.v_stride_n = kKvHeads * kHeadDim;
  params.q_stride_h = params.k_stride_h = params.v_stride_h = params.o_stride_h = kHeadDim;
  params.num_qo_heads = kHeads;
  params.num_kv_heads = kKvHeads;
  params.group_size = kHeads / kKvHeads;
  params.window_left = -1;
  params.causal = true;
  return params;
}

template <typename Element>
Call plan_ragged(const Prefill& prefill) {
  using Params = flashinfer::BatchPrefillRaggedParams<Element, Element, Out, std::int32_t>;
  std::shared_ptr<void> plan = device_memory(kPlanBytes), pinned = pinned_memory(kPlanBytes);
  std::vector<std::int32_t> starts, lengths(static_cast<std::size_t>(prefill.batch), prefill.tokens);
  for (int i = 0; i <= prefill.batch; ++i) starts.push_back(i * prefill.tokens);
  flashinfer::PrefillPlanSM90Info info;
  check(flashinfer::PrefillSM90Plan<std::int32_t>(
            nullptr, 0, plan.get(), pinned.get(), kPlanBytes, info, starts.data(), starts.data(),
            lengths.data(), prefill.batch * prefill.tokens, prefill.batch, kHeads, kKvHeads, kHeadDim,
            kHeadDim, /*page_size=*/1,
            /*causal=*/true, /*enable_cuda_graph=*/false, sizeof(Out), /*stream=*/nullptr),
        "PrefillSM90Plan");
  check(cudaDeviceSynchronize(), "PrefillSM90Plan's copy");
  Params params = common_params<Params>(prefill);
  params.nnz_qo = params.nnz_kv = std::int64_t{prefill.batch} * prefill.tokens;
  const auto planned = [&plan](std::int64_t offset) {
    return GetPtrFromBaseOffset<std::int32_t>(plan.get(), offset);
  };
  params.qo_tile_indices = planned(info.qo_tile_indices_offset);
  params.qo_indptr = planned(info.qo_indptr_offset);
  params.kv_indptr = planned(info.kv_indptr_offset);
  params.qo_lens = planned(info.qo_len_offset);
  params.kv_lens = planned(info.kv_len_offset);
  params.head_indices = planned(info.head_indices_offset);
  params.work_indptr = planned(info.work_indptr_offset);
  params.batch_indices = planned(info.batch_indices_offset);
  if (info.same_schedule_for_all_heads) {
    std::fprintf(stderr,
                 "flashinfer_attention: one schedule for all heads was planned, which is not compiled in\n");
    std::exit(1);
  }
  return [params, plan](cudaStream_t stream) mutable {
    constexpr bool kSlidingWindow = false, kSameScheduleForAllHeads = false, kDependentLaunch = true;
    if constexpr (sizeof(Element) == 1) {
      check(flashinfer::BatchFP8PrefillWithRaggedKVCacheDispatched<kHeadDim, MaskMode::kCausal,
                                                                   kSlidingWindow, kSameScheduleForAllHeads,
                                                                   flashinfer::StandardFP8Attention>(
                params, kDependentLaunch, stream),
            "BatchFP8PrefillWithRaggedKVCache");
    } else {
      check(flashinfer::BatchPrefillWithRaggedKVCacheDispatched<kHeadDim, kHeadDim, MaskMode::kCausal,
                                                                kSlidingWindow, kSameScheduleForAllHeads,
                                                                flashinfer::StandardAttention>(
                params, kDependentLaunch, stream),
            "BatchPrefillWithRaggedKVCache");
    }
  };
}

template <typename Element>
Call plan_single(const Prefill& prefill) {
  using Params = flashinfer::SinglePrefillParams<Element, Element, Out>;
  Params params = common_params<Params>(prefill);
  params.qo_len = params.kv_len = prefill.tokens;
  return [params](cudaStream_t stream) mutable {
    constexpr bool kSlidingWindow = false;
    if constexpr (sizeof(Element) == 1) {
      check(
          flashinfer::SingleFP8PrefillWithKVCacheDispatched<kHeadDim, MaskMode::kCausal, kSlidingWindow,
                                                            flashinfer::StandardFP8Attention>(params, stream),
          "SingleFP8PrefillWithKVCache");
    } else {
      check(flashinfer::SinglePrefillWithKVCacheDispatched<kHeadDim, kHeadDim, MaskMode::kCausal,
                                                           kSlidingWindow, flashinfer::StandardAttention>(
                params, stream),
            "SinglePrefillWithKVCache");
    }
  };
}

}  // namespace

Call plan_hopper_ragged_prefill(const Prefill& prefill) {
  return prefill.fp8 ? plan_ragged<cutlass::float_e4m3_t>(prefill)
                     : plan_ragged<cutlass::bfloat16_t>(prefill);
}

Call plan_hopper_single_prefill(const Prefill& prefill) {
  return prefill.fp8 ? plan_single<cutlass::float_e4m3_t>(prefill)
                     : plan_single<cutlass::bfloat16_t>(prefill);
}

}  // namespace peers
