#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/attention_testing.h"
#include "backend/cuda/attention.h"
#include "backend/cuda/device.h"
#include "backend/cuda/device_testing.h"
#include "backend/cuda/plan.h"

/// Runs the attention of a PagedAttention on the device.
namespace fieldprint::backend::cuda::testing {

/// Device memory with a copy of host data, or filled with one byte.
class Buffer {
 public:
  Buffer(const void* data, std::size_t bytes) : Buffer(bytes) {
    check(cudaMemcpy(data_, data, bytes, cudaMemcpyHostToDevice), "copy to device");
  }
  Buffer(std::size_t bytes, int byte) : Buffer(bytes) { check(cudaMemset(data_, byte, bytes), "fill"); }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::vector<float> floats(std::size_t count) const {
    std::vector<float> values(count);
    check(cudaMemcpy(values.data(), data_, count * sizeof(float), cudaMemcpyDeviceToHost), "copy to host");
    return values;
  }

 private:
  explicit Buffer(std::size_t bytes) { check(cudaMalloc(&data_, bytes + 16), "allocate"); }
  void* data_ = nullptr;
};

struct AttentionResult {
  std::vector<float> out;
  std::vector<float> anchor_mass;
};

/// `multiprocessors` steers how finely the plan cuts; the grid is as large. Runs twice, as layers follow each
/// other: the second run finds what the first one leaves behind.
inline AttentionResult run_on_device(backend::testing::PagedAttention& attention,
                                     std::int32_t multiprocessors) {
  AttentionArgs args = attention.args();
  std::vector<AttentionSequence> sequences;
  std::int64_t blocks = 0;
  std::size_t tokens = 0;
  for (std::size_t s = 0; s < attention.specs().size(); ++s) {
    const AttentionSequence& sequence = attention.sequence(s);
    sequences.push_back(sequence);
    tokens += static_cast<std::size_t>(sequence.queries);
    const std::int32_t context =
        std::max(sequence.first_position + sequence.queries - 1 - sequence.anchor_tokens, 0);
    const std::int32_t count = 1 + (sequence.anchor_tokens + 63) / 64 + (context + 63) / 64;
    for (std::int32_t b = 0; b < count; ++b) blocks = std::max<std::int64_t>(blocks, sequence.blocks[b] + 1);
  }
  const std::size_t rows = tokens * static_cast<std::size_t>(args.heads);
  const std::size_t dim = static_cast<std::size_t>(args.head_dim);
  const std::int64_t pool_bytes =
      (blocks - 1) * args.kv.block_stride + args.kv.layer_offset + args.kv_heads * page_bytes(args.head_dim);
  const PlanShape shape{args.heads, args.kv_heads, args.head_dim, args.window, multiprocessors};
  const AttentionWork work = plan_attention_work(sequences, shape);

  const Buffer pool(args.kv.pool, static_cast<std::size_t>(pool_bytes));
  const Buffer q(args.q, rows * dim);
  const Buffer q_step(args.q_step, rows * sizeof(std::int32_t));
  const Buffer v_scale(args.scales.v_scale, static_cast<std::size_t>(args.kv_heads) * dim * sizeof(float));
  const Buffer sink(args.scales.sink, static_cast<std::size_t>(args.kv_heads) * 4 * sizeof(float));
  const Buffer plan(work.buffer.data(), work.buffer.size());
  const Buffer workspace(static_cast<std::size_t>(workspace_bytes(shape, work.states)), 0xFF);
  const Buffer out(rows * dim * sizeof(float), 0xFF);
  const Buffer mass(rows * sizeof(float), 0xFF);
  args.q = q.as<std::int8_t>();
  args.q_step = q_step.as<std::int32_t>();
  args.scales.v_scale = v_scale.as<float>();
  args.scales.sink = sink.as<float>();
  args.kv.pool = pool.as<std::uint8_t>();
  args.sequences = nullptr;
  args.preface_items = nullptr;
  args.context_items = nullptr;
  args.states = nullptr;
  args.out = out.as<float>();
  args.anchor_mass = mass.as<float>();
  const DevicePlan on_device{plan.as<void>(), work.queries, work.items, work.row_items, multiprocessors};
  for (int i = 0; i < 2; ++i) cuda::attention(args, on_device, workspace.as<float>(), nullptr);
  check(cudaDeviceSynchronize(), "attention");
  return {out.floats(rows * dim), mass.floats(rows)};
}

}  // namespace fieldprint::backend::cuda::testing
