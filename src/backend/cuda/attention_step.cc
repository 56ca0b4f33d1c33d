#include "backend/cuda/attention_step.h"

namespace fieldprint::backend::cuda {
namespace {

bool same(const PlanShape& a, const PlanShape& b) {
  return a.heads == b.heads && a.kv_heads == b.kv_heads && a.head_dim == b.head_dim && a.window == b.window;
}

}  // namespace

AttentionStep::AttentionStep(Transfer& transfer, Stream stream)
    : transfer_(transfer), stream_(stream), multiprocessors_(multiprocessors()) {}

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
  refresh(*plan);
  return *plan;
}

void AttentionStep::refresh(Plan& plan) {
  if (plan.current) return;
  const AttentionWork work = plan_attention_work(sequences_, plan.shape);
  const auto bytes = static_cast<std::int64_t>(work.buffer.size());
  plan.buffer.reserve(bytes);
  transfer_.upload(plan.buffer.data(), work.buffer.data(), bytes);
  workspace_.reserve(workspace_bytes(plan.shape, work.states));
  plan.on_device = device_plan(plan.buffer.data(), work, multiprocessors_);
  plan.current = true;
}

void AttentionStep::prepare() {
  for (Plan& plan : plans_) refresh(plan);
}

std::vector<std::uint64_t> AttentionStep::launch_key() const {
  std::vector<std::uint64_t> key = {reinterpret_cast<std::uintptr_t>(workspace_.data())};
  for (const Plan& plan : plans_) {
    const DevicePlan& on_device = plan.on_device;
    key.push_back(reinterpret_cast<std::uintptr_t>(on_device.buffer));
    key.push_back(static_cast<std::uint64_t>(on_device.queries));
    key.push_back(on_device.items > 0 ? 1 : 0);
    key.push_back(static_cast<std::uint64_t>(on_device.row_tasks));
    key.push_back(static_cast<std::uint64_t>(on_device.items_at));
  }
  return key;
}

void AttentionStep::run(const AttentionArgs& args) {
  const Plan& plan = plan_for(args);
  attention(args, plan.on_device, reinterpret_cast<float*>(workspace_.data()), stream_);
}

}  // namespace fieldprint::backend::cuda
