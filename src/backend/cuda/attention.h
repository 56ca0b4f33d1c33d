#pragma once

#include <cstdint>

#include "backend/cuda/device.h"
#include "backend/cuda/plan.h"
#include "backend/ops.h"

namespace fieldprint::backend::cuda {

/// A plan (AttentionWork) on the device. `buffer` is what AttentionWork::buffer holds, aligned to 16 bytes.
/// A recorded launch serves every plan with as many queries and row tasks: the number of items is read on the
/// device. Plans of decode steps have no row tasks.
struct DevicePlan {
  void* buffer;          ///< the fold leaves it as it was uploaded
  std::int32_t queries;  ///< AttentionWork::queries
  std::int32_t items;    ///< 0 for a plan that has none, else any number
  std::int32_t row_tasks;
  std::int32_t items_at;
  std::int32_t multiprocessors;
};
inline DevicePlan device_plan(void* buffer, const AttentionWork& work, std::int32_t multiprocessors) {
  return {buffer, work.queries, work.items, work.row_tasks, work.items_at, multiprocessors};
}

/// Attention of all queries of the plan: out and anchor_mass of `args`. Head sizes are multiples of 16 up to
/// 256, groups have 1 to 16 heads; pool, strides and q are aligned to 16 bytes. Of `args` the sequences,
/// items and states are not read: plan and `workspace` (workspace_bytes(), 16-byte aligned) stand for them.
void attention(const AttentionArgs& args, const DevicePlan& plan, float* workspace, Stream stream);

}  // namespace fieldprint::backend::cuda
