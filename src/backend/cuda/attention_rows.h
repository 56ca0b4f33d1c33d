#pragma once

#include <cstdint>

#include "backend/cuda/attention_state.cuh"
#include "backend/cuda/device.h"
#include "backend/ops.h"

/// Row items of the plan: a block of up to rows_of_item() query rows (queries × heads of a group) passes over
/// its pages together, on the tensor cores. For prefill.
namespace fieldprint::backend::cuda {

struct RowsArgs {
  AttentionArgs attention;
  PlanView plan;
  StateView states;
  std::int32_t tasks;
};

/// Each of `multiprocessors` blocks, or of as many as there are tasks, has those that the plan deals it.
void launch_rows(const RowsArgs& args, std::int32_t multiprocessors, Stream stream);

}  // namespace fieldprint::backend::cuda
