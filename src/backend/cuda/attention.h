#pragma once

#include <cstdint>

#include "backend/cuda/device.h"
#include "backend/cuda/plan.h"
#include "backend/ops.h"

namespace fieldprint::backend::cuda {

/// A plan (AttentionWork) on the device. `buffer` is what AttentionWork::buffer holds, aligned to 16 bytes.
/// A recorded launch serves every plan with as many queries and row items: the number of items is read on the
/// device. Plans of decode steps have no row items.
struct DevicePlan {
  void* buffer;  ///< the fold leaves it as it was uploaded
  std::int32_t queries;
  std::int32_t items;  ///< 0 for a plan that has none, else any number
  std::int32_t row_items;
  std::int32_t multiprocessors;
};

/// Attention of all queries of the plan: out and anchor_mass of `args`. Head sizes are multiples of 16 up to
/// 256, groups have 1 to 16 heads; pool, strides and q are aligned to 16 bytes. Of `args` the sequences,
/// items and states are not read: plan and `workspace` (workspace_bytes(), 16-byte aligned) stand for them.
void attention(const AttentionArgs& args, const DevicePlan& plan, float* workspace, Stream stream);

}  // namespace fieldprint::backend::cuda
