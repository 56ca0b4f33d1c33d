#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "backend/ops.h"

/// How a step's attention is cut into items for the device. The cut changes no result. A plan is built on the
/// host once a step, for each distinct window of the model's layers, and uploaded as one buffer.
namespace fieldprint::backend::cuda {

struct PlanShape {
  std::int32_t heads;
  std::int32_t kv_heads;
  std::int32_t head_dim;
  std::int32_t window;           ///< of the layers that the plan is for; 0 = all
  std::int32_t multiprocessors;  ///< of the device
};

/// One query token. A state is that of all query heads of one token over some of its history. The parts of
/// the context come in order: chunks, of which the first part may be several, or the whole row; then tiles.
struct PlannedQuery {
  std::int32_t token;  ///< row of q and out
  std::int32_t sequence;
  std::int32_t position;
  std::int32_t sink_block;  ///< of its sequence, as the next three
  std::int32_t anchor_tokens;
  float floor_odds;
  float ceiling_odds;
  std::int32_t state;         ///< of its first part of the context
  std::int32_t state_stride;  ///< to the next part
  std::int32_t whole_parts;   ///< that are not tiles; -1 where an item makes the result
  std::int32_t tile_parts;
  std::int32_t skipped_tiles;  ///< tiles of its chunk before the first tile part
  std::int32_t anchor_state;
  std::int32_t anchor_stride;
  std::int32_t anchor_parts;  ///< all anchors, or their tiles; 0 without anchors
  std::int32_t reserved;
};

/// Tiles of one segment for some queries and, on the device, for each KV head. Tile t has the segment's
/// pages 2t and 2t + 1; in the table of blocks a missing last page is the one before it again.
struct PlannedItem {
  std::int32_t first_query;
  std::int32_t queries;
  std::int32_t block;  ///< where the segment's blocks begin in the table, one a page
  std::int32_t first_tile;
  std::int32_t end_tile;
  std::int32_t state;          ///< of the first query, the others' follow; -1 for results instead
  std::int32_t context;        ///< 1 for the context, 0 for anchors
  std::int32_t settled_tiles;  ///< of the segment: this step writes none of their tokens
};

/// A row item for one KV head.
struct PlannedTask {
  PlannedItem item;
  std::int32_t kv_head;
  std::int32_t reserved[3];
};

/// Query rows (queries × heads of a group) of an item, and of a row item, at most.
inline constexpr std::int32_t kColumnRows = 16;
constexpr std::int32_t rows_of_item(std::int32_t head_dim) { return head_dim <= 128 ? 192 : 128; }

/// The head of the uploaded buffer; the queries follow it. Offsets are in bytes from its start.
struct PlanHeader {
  std::int32_t items;      ///< of a few rows each, for decode steps
  std::int32_t row_tasks;  ///< row items, for prefill, each for every KV head
  std::int32_t queries;
  std::int32_t row_starts_at;  ///< each block's first of the row tasks, and their number
  std::int32_t row_tasks_at;   ///< PlannedTask
  std::int32_t blocks_at;
  std::int32_t to_fold;     ///< queries up to the last one that no item makes the result of
  std::int32_t team_items;  ///< the first of the items: the warps of a block share each, chunk by chunk
  std::int32_t taken;       ///< items that warps have come back for; 0 between launches
  std::int32_t reserved[3];
};
static_assert(sizeof(PlanHeader) % 16 == 0 && sizeof(PlannedQuery) % 16 == 0 &&
              sizeof(PlannedItem) % 16 == 0 && sizeof(PlannedTask) % 16 == 0);

struct AttentionWork {
  std::vector<std::byte> buffer;  ///< PlanHeader and what it points to
  std::int32_t queries;           ///< of the fold's launch
  std::int32_t items;
  std::int32_t row_tasks;
  std::int32_t items_at;  ///< offset of the items
  std::int32_t states;    ///< partial states that the workspace must hold
};

/// Shared memory of a warp that works on items: a tile's K and V, the queries, the row's state, two barriers.
constexpr std::int32_t column_pad(std::int32_t head_dim) {
  return head_dim <= 64 ? 64 : head_dim <= 128 ? 128 : 256;
}
constexpr std::int32_t column_warp_bytes(std::int32_t head_dim) {
  return static_cast<std::int32_t>(2 * page_bytes(head_dim)) +
         kColumnRows * column_pad(head_dim) * (1 + static_cast<std::int32_t>(sizeof(float))) + 16;
}
/// Such warps on a multiprocessor, as registers and shared memory allow. Heads of 80 to 128 have one in each
/// of its four parts: more read no faster, and leave no registers there for the fold, which starts beside
/// them.
constexpr std::int32_t column_warps(std::int32_t head_dim) {
  constexpr std::int32_t kBytes = 216 * 1024;
  const std::int32_t pad = column_pad(head_dim);
  return std::min(kBytes / column_warp_bytes(head_dim), pad == 64 ? 10 : pad == 128 ? 4 : 3);
}

/// Sequences with at most kColumnRows rows a KV head in this step become items, the others row items.
AttentionWork plan_attention_work(std::span<const AttentionSequence> sequences, const PlanShape& shape);

/// Of one partial state, a multiple of 16 bytes.
constexpr std::int64_t state_floats(std::int32_t heads, std::int32_t head_dim) {
  return (std::int64_t{heads} * (head_dim + 2) + 3) / 4 * 4;
}
/// Bytes of the workspace for `states` states.
std::int64_t workspace_bytes(const PlanShape& shape, std::int64_t states);

}  // namespace fieldprint::backend::cuda
