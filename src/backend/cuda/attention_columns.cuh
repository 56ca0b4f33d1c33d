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

/// Shared memory of a block besides its warps': the row of a team item, and barriers.
constexpr std::int32_t column_team_bytes(std::int32_t pad) { return (pad / 8 + 1) * 512 + 128; }

/// Folds the states of the plan's items, and the sinks, to results. Looks at the queries and the sinks before
/// the kernel in front of it has ended, which is right where that one is of items: it began when they were
/// written.
void launch_fold(const ColumnsArgs& args, std::int32_t multiprocessors, bool after_items, Stream stream);

/// The items of the plan, each by a single warp on a stream of pages of its own, or by the warps of a block
/// in turn. `blocks` is the number of multiprocessors.
void launch_columns(const ColumnsArgs& args, std::int32_t blocks, Stream stream);

}  // namespace fieldprint::backend::cuda
