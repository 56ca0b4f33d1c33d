#include "backend/cuda/attention.h"
#include "backend/cuda/attention_columns.cuh"
#include "backend/cuda/attention_rows.h"

namespace fieldprint::backend::cuda {

void attention(const AttentionArgs& args, const DevicePlan& plan, float* workspace, Stream stream) {
  auto* header = static_cast<PlanHeader*>(plan.buffer);
  const ColumnsArgs columns{
      args,         {header, plan.items_at},         {workspace, args.heads, args.head_dim}, &header->taken,
      plan.queries, column_warp_bytes(args.head_dim)};
  if (plan.row_tasks > 0) {
    launch_rows({columns.attention, columns.plan, columns.states, plan.row_tasks}, plan.multiprocessors,
                stream);
  }
  if (plan.items > 0) launch_columns(columns, plan.multiprocessors, stream);
  if (plan.queries == 0) return;
  launch_fold(columns, plan.multiprocessors, plan.items > 0 || plan.row_tasks > 0, stream);
}

}  // namespace fieldprint::backend::cuda
