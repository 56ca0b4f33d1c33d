#pragma once

#include <cstdint>

#include "backend/cuda/attention_state.cuh"
#include "backend/cuda/device.h"
#include "backend/ops.h"

/// Row items of the plan: a block of 128 query rows (queries × heads of a group) passes over its pages
/// together. Bound by instructions: for prefill.
namespace fieldprint::backend::cuda {

struct RowsArgs {
  AttentionArgs attention;
  PlanView plan;
  StateView states;
  std::int32_t stages;  ///< pages in shared memory
};

/// Launches a block for each of `items` items and each KV head.
void launch_rows(const RowsArgs& args, std::int32_t items, Stream stream);

}  // namespace fieldprint::backend::cuda
