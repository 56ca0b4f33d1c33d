#pragma once

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

struct PlannedSequence {
  std::int32_t sink_block;
  std::int32_t anchor_tokens;
  float floor_odds;
  float ceiling_odds;
};

/// One query token. A state is that of all query heads of one token over some of its history.
struct PlannedQuery {
  std::int32_t token;  ///< row of q and out
  std::int32_t sequence;
  std::int32_t position;
  std::int32_t state;         ///< of its first part of the context
  std::int32_t state_stride;  ///< to the next part
  std::int32_t parts;
  std::int32_t first_chunk;   ///< of the first part, where parts are chunks; -1 where they are groups
  std::int32_t anchor_state;  ///< -1 without anchors
};

/// Tiles of one segment for some queries and, on the device, for each KV head.
struct PlannedItem {
  std::int32_t first_query;
  std::int32_t queries;
  std::int32_t block;  ///< where the segment's blocks begin in the table
  std::int32_t first_tile;
  std::int32_t end_tile;
  std::int32_t state;    ///< of the first query; the others' follow
  std::int32_t context;  ///< 1 for the context, 0 for anchors
  std::int32_t reserved;
};

/// Query rows (queries × heads of a group) of a row item, at most.
inline constexpr std::int32_t kRowsOfItem = 128;

/// The head of the uploaded buffer. Offsets are in bytes from its start.
struct PlanHeader {
  std::int32_t items;      ///< of a few rows each, for decode steps
  std::int32_t row_items;  ///< of up to kRowsOfItem rows, for prefill
  std::int32_t queries;
  std::int32_t sequences_at;
  std::int32_t queries_at;
  std::int32_t items_at;
  std::int32_t row_items_at;
  std::int32_t blocks_at;
};

struct AttentionWork {
  std::vector<std::byte> buffer;  ///< PlanHeader and what it points to
  std::int32_t queries;
  std::int32_t items;
  std::int32_t row_items;
  std::int32_t states;  ///< partial states that the workspace must hold
};

/// Sequences with at most 16 rows a KV head in this step become items, the others row items.
AttentionWork plan_attention_work(std::span<const AttentionSequence> sequences, const PlanShape& shape);

/// Bytes of the workspace for `states` states.
std::int64_t workspace_bytes(const PlanShape& shape, std::int64_t states);

}  // namespace fieldprint::backend::cuda
