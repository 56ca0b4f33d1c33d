#include "backend/cuda/attention_step.h"

#include <cuda_runtime_api.h>

namespace fieldprint::backend::cuda {
namespace {

std::int32_t count_multiprocessors() {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0), "cudaDeviceGetAttribute");
  return count;
}

bool same(const PlanShape& a, const PlanShape& b) {
  return a.heads == b.heads && a.kv_heads == b.kv_heads && a.head_dim == b.head_dim && a.window == b.window;
}

}  // namespace

AttentionStep::AttentionStep(Transfer& transfer, Stream stream)
    : transfer_(transfer), stream_(stream), multiprocessors_(count_multiprocessors()) {}

void AttentionStep::begin(std::span<const AttentionSequence> sequences) {
  sequences_.assign(sequences.begin(), sequences.end());
  for (Plan& plan : plans_) plan.current = false;
}

AttentionStep::Plan& AttentionStep::plan_for(const AttentionArgs& args) {
  const PlanShape shape{args.heads, args.kv_heads, args.head_dim, args.window, multiprocessors_};
  Plan* plan = nullptr;
  for (Plan& known : plans_) {
    if (same(known.shape, shape)) plan = &known;
  }
  if (plan == nullptr) plan = &plans_.emplace_back(Plan{shape, {}, {}, false});
  if (plan->current) return *plan;
  const AttentionWork work = plan_attention_work(sequences_, shape);
  const auto bytes = static_cast<std::int64_t>(work.buffer.size());
  plan->buffer.reserve(bytes);
  transfer_.upload(plan->buffer.data(), work.buffer.data(), bytes);
  workspace_.reserve(workspace_bytes(shape, work.states));
  plan->on_device = {plan->buffer.data(), work.queries, work.items, work.row_items, multiprocessors_};
  plan->current = true;
  return *plan;
}

void AttentionStep::run(const AttentionArgs& args) {
  const Plan& plan = plan_for(args);
  attention(args, plan.on_device, reinterpret_cast<float*>(workspace_.data()), stream_);
}

}  // namespace fieldprint::backend::cuda
