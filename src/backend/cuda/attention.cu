#include "backend/cuda/attention.h"
#include "backend/cuda/attention_columns.cuh"
#include "backend/cuda/attention_rows.h"

namespace fieldprint::backend::cuda {

void attention(const AttentionArgs& args, const DevicePlan& plan, float* workspace, Stream stream) {
  auto* header = static_cast<PlanHeader*>(plan.buffer);
  const ColumnsArgs columns{args, {header}, {workspace, args.heads, args.head_dim}, &header->taken,
                            column_warp_bytes(args.head_dim)};
  if (plan.row_items > 0) {
    launch_rows({columns.attention, columns.plan, columns.states, 0}, plan.row_items, stream);
  }
  if (plan.items > 0) launch_columns(columns, plan.multiprocessors, stream);
  launch_fold(columns, plan.queries, plan.multiprocessors, stream);
}

}  // namespace fieldprint::backend::cuda
