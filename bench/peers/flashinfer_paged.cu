// FlashInfer's decode kernel, its FA2 prefill kernel used for decoding, and its cascade, over paged caches.
#include <cuda_fp8.h>

#include <flashinfer/attention/cascade.cuh>
#include <flashinfer/attention/decode.cuh>
#include <flashinfer/attention/default_decode_params.cuh>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/variants.cuh>
#include <vector>

#include "flashinfer_calls.h"

namespace peers {
namespace {

using flashinfer::GetPtrFromBaseOffset;
using flashinfer::MaskMode;
using flashinfer::PosEncodingMode;
using Variant = flashinfer::DefaultAttention</*use_custom_mask=*/false, /*use_sliding_window=*/false,
                                             /*use_logits_soft_cap=*/false, /*use_alibi=*/false>;

constexpr std::size_t kPlanBytes = 8 << 20;  // the wrappers' default for the integer workspace
constexpr bool kDependentLaunch = true;      // the wrappers' default on Hopper

template <typename Kv>
flashinfer::paged_kv_t<Kv, std::int32_t> paged_kv(const PagedCache& cache) {
  return {kKvHeads,
          static_cast<std::uint32_t>(cache.page_size),
          kHeadDim,
          static_cast<std::uint32_t>(cache.batch),
          cache.heads_first ? flashinfer::QKVLayout::kHND : flashinfer::QKVLayout::kNHD,
          static_cast<Kv*>(cache.keys),
          static_cast<Kv*>(cache.values),
          cache.pages,
          cache.page_starts,
          cache.last_page_lens};
}

std::vector<std::int32_t> multiples(int count, int step) {
  std::vector<std::int32_t> values;
  for (int i = 0; i <= count; ++i) values.push_back(i * step);
  return values;
}

template <typename Kv>
Call plan_cuda_core(const Decode& decode, Scratch scratch) {
  using Params = flashinfer::BatchDecodeParams<__nv_bfloat16, Kv, __nv_bfloat16, std::int32_t>;
  const PagedCache& cache = decode.cache;
  std::shared_ptr<void> plan = device_memory(kPlanBytes), pinned = pinned_memory(kPlanBytes);
  std::vector<std::int32_t> starts = multiples(cache.batch, cache.pages_each());
  flashinfer::DecodePlanInfo info;
  check(flashinfer::DecodePlan<kHeadDim, PosEncodingMode::kNone, Variant, Params>(
            scratch.memory, scratch.bytes, plan.get(), pinned.get(), kPlanBytes, info, starts.data(),
            cache.batch, kHeads, cache.page_size, /*enable_cuda_graph=*/false, /*stream=*/nullptr,
            flashinfer::BatchDecodeWithPagedKVCacheWorkEstimationDispatched<
                kHeads / kKvHeads, kHeadDim, PosEncodingMode::kNone, Variant, Params>),
        "DecodePlan");
  check(cudaDeviceSynchronize(), "DecodePlan's copy");
  Params params;
  params.q = decode.q;
  params.paged_kv = paged_kv<Kv>(cache);
  params.o = decode.out;
  params.num_qo_heads = kHeads;
  params.q_stride_n = kHeads * kHeadDim;
  params.q_stride_h = kHeadDim;
  params.window_left = -1;
  params.sm_scale = kSoftmaxScale;
  params.request_indices = GetPtrFromBaseOffset<std::int32_t>(plan.get(), info.request_indices_offset);
  params.kv_tile_indices = GetPtrFromBaseOffset<std::int32_t>(plan.get(), info.kv_tile_indices_offset);
  params.o_indptr = GetPtrFromBaseOffset<std::int32_t>(plan.get(), info.o_indptr_offset);
  params.kv_chunk_size_ptr = GetPtrFromBaseOffset<std::int32_t>(plan.get(), info.kv_chunk_size_ptr_offset);
  params.padded_batch_size = static_cast<std::uint32_t>(info.padded_batch_size);
  __nv_bfloat16* partial = nullptr;
  float* partial_sums = nullptr;
  if (info.split_kv) {
    partial = GetPtrFromBaseOffset<__nv_bfloat16>(scratch.memory, info.v_offset);
    partial_sums = GetPtrFromBaseOffset<float>(scratch.memory, info.s_offset);
  }
  return [params, partial, partial_sums, plan](cudaStream_t stream) {
    check(flashinfer::BatchDecodeWithPagedKVCacheDispatched<kHeadDim, PosEncodingMode::kNone, Variant>(
              params, partial, partial_sums, kDependentLaunch, stream),
          "BatchDecodeWithPagedKVCache");
  };
}

/// `queries` queries for each sequence of the cache, which see all of it; lse may be null.
struct Queries {
  __nv_bfloat16* q;
  __nv_bfloat16* out;
  float* lse;
  int each;
};

template <typename Kv, int kTile>
Call plan_tensor_core(const PagedCache& cache, const Queries& queries, Scratch scratch) {
  using Params = flashinfer::BatchPrefillPagedParams<__nv_bfloat16, Kv, __nv_bfloat16, std::int32_t>;
  std::shared_ptr<void> plan = device_memory(kPlanBytes), pinned = pinned_memory(kPlanBytes);
  std::vector<std::int32_t> starts = multiples(cache.batch, cache.pages_each());
  std::vector<std::int32_t> query_starts = multiples(cache.batch, queries.each);
  std::shared_ptr<void> query_starts_device = device_memory(query_starts.size() * sizeof(std::int32_t));
  check(cudaMemcpy(query_starts_device.get(), query_starts.data(), query_starts.size() * sizeof(std::int32_t),
                   cudaMemcpyHostToDevice),
        "query starts");
  flashinfer::PrefillPlanInfo info;
  check(flashinfer::PrefillPlan<std::int32_t>(
            scratch.memory, scratch.bytes, plan.get(), pinned.get(), kPlanBytes, info, query_starts.data(),
            starts.data(), cache.batch * queries.each, cache.batch, kHeads, kKvHeads, kHeadDim, kHeadDim,
            cache.page_size,
            /*enable_cuda_graph=*/false, sizeof(__nv_bfloat16), /*window_left=*/-1, /*fixed_split_size=*/-1,
            /*disable_split_kv=*/false, /*num_colocated_ctas=*/0, /*uniform_q_len=*/0, /*stream=*/nullptr,
            sizeof(Kv)),
        "PrefillPlan");
  check(cudaDeviceSynchronize(), "PrefillPlan's copy");
  if (info.cta_tile_q != kTile) {
    std::fprintf(stderr, "flashinfer_attention: planned for tiles of %ld queries\n",
                 static_cast<long>(info.cta_tile_q));
    std::exit(1);
  }
  Params params;
  params.q = queries.q;
  params.paged_kv = paged_kv<Kv>(cache);
  params.q_indptr = static_cast<std::int32_t*>(query_starts_device.get());
  params.o = queries.out;
  params.lse = queries.lse;
  params.group_size = flashinfer::uint_fastdiv(kHeads / kKvHeads);
  params.num_qo_heads = kHeads;
  params.q_stride_n = kHeads * kHeadDim;
  params.q_stride_h = kHeadDim;
  params.window_left = -1;
  params.sm_scale = kSoftmaxScale;
  params.request_indices = GetPtrFromBaseOffset<std::int32_t>(plan.get(), info.request_indices_offset);
  params.qo_tile_indices = GetPtrFromBaseOffset<std::int32_t>(plan.get(), info.qo_tile_indices_offset);
  params.kv_tile_indices = GetPtrFromBaseOffset<std::int32_t>(plan.get(), info.kv_tile_indices_offset);
  params.o_indptr = GetPtrFromBaseOffset<std::int32_t>(plan.get(), info.o_indptr_offset);
  params.kv_chunk_size_ptr = GetPtrFromBaseOffset<std::int32_t>(plan.get(), info.kv_chunk_size_ptr_offset);
  params.padded_batch_size = static_cast<std::uint32_t>(info.padded_batch_size);
  params.max_total_num_rows = static_cast<std::uint32_t>(info.total_num_rows);
  __nv_bfloat16* partial = nullptr;
  float* partial_sums = nullptr;
  if (info.split_kv) {
    params.merge_indptr = GetPtrFromBaseOffset<std::int32_t>(plan.get(), info.merge_indptr_offset);
    partial = GetPtrFromBaseOffset<__nv_bfloat16>(scratch.memory, info.v_offset);
    partial_sums = GetPtrFromBaseOffset<float>(scratch.memory, info.s_offset);
  }
  return [params, partial, partial_sums, plan, query_starts_device](cudaStream_t stream) {
    check(
        flashinfer::BatchPrefillWithPagedKVCacheDispatched<kTile, kHeadDim, kHeadDim, PosEncodingMode::kNone,
                                                           /*USE_FP16_QK_REDUCTION=*/false, MaskMode::kNone,
                                                           Variant>(params, partial, partial_sums,
                                                                    kDependentLaunch, stream),
        "BatchPrefillWithPagedKVCache");
  };
}

}  // namespace

Call plan_cuda_core_decode(const Decode& decode, Scratch scratch) {
  return decode.cache.fp8 ? plan_cuda_core<__nv_fp8_e4m3>(decode, scratch)
                          : plan_cuda_core<__nv_bfloat16>(decode, scratch);
}

Call plan_tensor_core_decode(const Decode& decode, Scratch scratch) {
  const Queries queries = {decode.q, decode.out, nullptr, 1};
  return decode.cache.fp8 ? plan_tensor_core<__nv_fp8_e4m3, 16>(decode.cache, queries, scratch)
                          : plan_tensor_core<__nv_bfloat16, 16>(decode.cache, queries, scratch);
}

Call plan_cascade_decode(const Decode& decode, const PagedCache& prefix, Scratch scratch) {
  const int batch = decode.cache.batch;
  const std::size_t rows = static_cast<std::size_t>(batch) * kHeads;
  std::shared_ptr<void> sums = device_memory(2 * rows * sizeof(float));
  std::shared_ptr<void> prefix_out = device_memory(rows * kHeadDim * sizeof(__nv_bfloat16));
  auto* lse = static_cast<float*>(sums.get());
  float* prefix_lse = lse + rows;
  auto* other = static_cast<__nv_bfloat16*>(prefix_out.get());
  const Call own = plan_tensor_core<__nv_bfloat16, 16>(decode.cache, {decode.q, decode.out, lse, 1}, scratch);
  const Call shared =
      plan_tensor_core<__nv_bfloat16, 128>(prefix, {decode.q, other, prefix_lse, batch}, scratch);
  return [own, shared, out = decode.out, lse, prefix_lse, other, batch, sums,
          prefix_out](cudaStream_t stream) {
    own(stream);
    shared(stream);
    check(
        flashinfer::MergeStateInPlace(out, lse, other, prefix_lse, batch, kHeads, kHeadDim, nullptr, stream),
        "MergeStateInPlace");
  };
}

}  // namespace peers
