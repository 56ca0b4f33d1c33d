#pragma once

#include "backend/cuda/attention_state.cuh"
#include "backend/cuda/device.h"

namespace fieldprint::backend::cuda {

struct ColumnsArgs {
  AttentionArgs attention;
  PlanView plan;
  StateView states;
  std::int32_t* taken;      ///< of the plan's header
  std::int32_t queries;     ///< to be folded
  std::int32_t warp_bytes;  ///< column_warp_bytes(), for the kernel
};

/// Folds the states of the plan's items, and the sinks, to results. Looks at the queries and the sinks before
/// the kernel in front of it has ended, which is right where that one is of items: it began when they were
/// written.
void launch_fold(const ColumnsArgs& args, std::int32_t multiprocessors, bool after_items, Stream stream);

/// The items of the plan, each by a single warp on a stream of pages of its own. `blocks` is the number of
/// multiprocessors.
void launch_columns(const ColumnsArgs& args, std::int32_t blocks, Stream stream);

}  // namespace fieldprint::backend::cuda
