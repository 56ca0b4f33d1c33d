#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend/cuda/plan.h"
#include "exact/format.h"

/// How the contexts of a step's queries are cut into parts and dealt, so that every multiprocessor has as
/// much to do and few partial states are made.
namespace fieldprint::backend::cuda {

/// Tiles of a segment.
struct TileRange {
  std::int32_t first;
  std::int32_t end;

  std::int32_t count() const { return std::max(end - first, 0); }
  std::int32_t first_chunk() const { return first / exact::kChunkTiles; }
  std::int32_t end_chunk() const {
    return count() == 0 ? first_chunk() : (end + exact::kChunkTiles - 1) / exact::kChunkTiles;
  }
};

/// Queries of one sequence that are computed together, and how their context is cut: the chunks before
/// chunks_from are one part, those before tiles_from a part each, and the rest tiles.
struct PlannedRow {
  std::size_t sequence;
  std::int32_t slot;  ///< of the first query
  std::int32_t queries;
  TileRange range;
  bool alone;  ///< the context is all there is besides the sink
  std::int32_t chunks_from;
  std::int32_t tiles_from;
  bool result = false;  ///< nothing is left to fold: an item makes the result
  bool team = false;    ///< the first part is for all warps of a block

  bool whole() const { return chunks_from == range.end_chunk(); }
};

/// Cuts rows of at most kColumnRows query rows, which are whole before.
void cut_few(std::vector<PlannedRow>& rows, const PlanShape& shape);
/// Cuts rows of up to rows_of_item() query rows, which are whole before, into parts whose states take at most
/// bounds::kMaxAttentionStateBytes or are one a query.
void cut_many(std::vector<PlannedRow>& rows, const PlanShape& shape);

/// What each block has to do, one after the other. There are no more blocks than tasks.
struct DealtTasks {
  std::vector<std::int32_t> starts;  ///< of each block, and the end of the last one
  std::vector<PlannedTask> tasks;
};
/// Deals items, the longest first, each to the block that has least to do.
DealtTasks deal_tasks(const std::vector<PlannedItem>& items, const PlanShape& shape);

}  // namespace fieldprint::backend::cuda
