// FlashInfer's prefill kernel for Hopper (FlashAttention-3's design, over CUTLASS).
#include <cutlass/numeric_types.h>

#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>
#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <vector>

#include "flashinfer_calls.h"

namespace peers {
namespace {

using Element = cutlass::bfloat16_t;
using flashinfer::GetPtrFromBaseOffset;
using flashinfer::MaskMode;
using Variant = flashinfer::StandardAttention;

constexpr std::size_t kPlanBytes = 8 << 20;

/// What the parameters of both wrappers have in common.
template <typename Params>
Params common_params(const Prefill& prefill) {
  Params params{};
  params.q_ptr = reinterpret_cast<Element*>(prefill.q);
  params.k_ptr = reinterpret_cast<Element*>(prefill.keys);
  params.v_ptr = reinterpret_cast<Element*>(prefill.values);
  params.o_ptr = reinterpret_cast<Element*>(prefill.out);
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

}  // namespace

Call plan_hopper_ragged_prefill(const Prefill& prefill) {
  using Params = flashinfer::BatchPrefillRaggedParams<Element, Element, Element, std::int32_t>;
  std::shared_ptr<void> plan = device_memory(kPlanBytes), pinned = pinned_memory(kPlanBytes);
  std::vector<std::int32_t> starts, lengths(static_cast<std::size_t>(prefill.batch), prefill.tokens);
  for (int i = 0; i <= prefill.batch; ++i) starts.push_back(i * prefill.tokens);
  flashinfer::PrefillPlanSM90Info info;
  check(flashinfer::PrefillSM90Plan<std::int32_t>(
            nullptr, 0, plan.get(), pinned.get(), kPlanBytes, info, starts.data(), starts.data(),
            lengths.data(), prefill.batch * prefill.tokens, prefill.batch, kHeads, kKvHeads, kHeadDim,
            kHeadDim, /*page_size=*/1,
            /*causal=*/true, /*enable_cuda_graph=*/false, sizeof(Element), /*stream=*/nullptr),
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
    check(flashinfer::BatchPrefillWithRaggedKVCacheDispatched<kHeadDim, kHeadDim, MaskMode::kCausal,
                                                              /*LEFT_SLIDING_WINDOW=*/false,
                                                              /*SAME_SCHEDULE_FOR_ALL_HEADS=*/false, Variant>(
              params, /*enable_pdl=*/true, stream),
          "BatchPrefillWithRaggedKVCache");
  };
}

Call plan_hopper_single_prefill(const Prefill& prefill) {
  using Params = flashinfer::SinglePrefillParams<Element, Element, Element>;
  Params params = common_params<Params>(prefill);
  params.qo_len = params.kv_len = prefill.tokens;
  return [params](cudaStream_t stream) mutable {
    check(flashinfer::SinglePrefillWithKVCacheDispatched<kHeadDim, kHeadDim, MaskMode::kCausal,
                                                         /*LEFT_SLIDING_WINDOW=*/false, Variant>(params,
                                                                                                 stream),
          "SinglePrefillWithKVCache");
  };
}

}  // namespace peers
