#include "backend/cuda/plan_rows.h"

#include <functional>
#include <numeric>
#include <queue>
#include <utility>

#include "base/bounds.h"

namespace fieldprint::backend::cuda {
namespace {

using exact::kChunkTiles;

/// Tiles that each of `workers` would have if they could be shared evenly.
std::int64_t fair_share(const std::vector<PlannedRow>& rows, const PlanShape& shape, std::int64_t workers) {
  const std::int64_t tiles =
      std::accumulate(rows.begin(), rows.end(), std::int64_t{0},
                      [](std::int64_t sum, const PlannedRow& row) { return sum + row.range.count(); });
  return tiles * shape.kv_heads / workers;
}

/// What beginning and ending a task costs, in tiles; measured best on an H100, where 1 and 4 are hardly
/// worse.
constexpr std::int64_t kTilesOfATask = 2;

/// What is measured best on an H100, in whole chunks.
std::int64_t most_of(std::int64_t fair) { return 17 * fair / 20 / kChunkTiles * kChunkTiles; }

/// A first part of two chunks saves a state, one of a single chunk nothing.
std::int64_t long_piece(std::int64_t tiles) { return tiles < 2 * kChunkTiles ? 0 : tiles; }

/// The row's first part has so many chunks, or all of them; 0: each is a part.
void begin_with(PlannedRow& row, std::int64_t chunks) {
  row.chunks_from = static_cast<std::int32_t>(
      std::min<std::int64_t>(row.range.first_chunk() + chunks, row.range.end_chunk()));
}

/// Cuts rows for warps that each come back for another item.
class FewRows {
 public:
  FewRows(std::vector<PlannedRow>& rows, const PlanShape& shape)
      : rows_(rows),
        shape_(shape),
        warps_(static_cast<std::int64_t>(shape.multiprocessors) * column_warps(shape.head_dim)) {}

  /// Few parts make few states, but no warp should still be at work when the others have nothing left: each
  /// has most of its fair share in one piece, and comes back for chunks, and for tiles at last. What is
  /// measured best on an H100 is 17/20 of the share, and tiles for an eighth of the warps' last chunks.
  void cut() {
    const std::int64_t kv_heads = shape_.kv_heads;
    const std::int64_t fair = fair_share(rows_, shape_, warps_);
    const std::int64_t longest = most_of(fair);
    std::int64_t whole_rows = 0;
    for (const PlannedRow& row : rows_) whole_rows += row.range.count() <= longest ? 1 : 0;
    const std::int64_t team = team_tiles((std::ssize(rows_) - whole_rows) * kv_heads, 17 * fair / 20);
    for (PlannedRow& row : rows_) {
      if (row.range.count() <= longest) continue;
      row.team = team > 0;
      begin_with(row, (row.team ? team : long_piece(longest)) / kChunkTiles);
    }
    cut_last_rows((last_round(whole_rows * kv_heads) + kv_heads - 1) / kv_heads);

    std::int64_t tiles = 0;
    for (const PlannedRow& row : rows_) {
      tiles += std::max(row.range.end - std::max(row.range.first, row.chunks_from * kChunkTiles), 0);
    }
    const std::int64_t chunks = (tiles * kv_heads + kChunkTiles - 1) / kChunkTiles;
    cut_last_chunks(chunks < warps_ ? last_round(chunks) : warps_ / 8);
    for (PlannedRow& row : rows_) row.result = row.whole() && row.alone;
  }

 private:
  /// How long a first part is where a block's warps work on it together: of `rows` rows each block has at
  /// most `rounds`. 0 where that does not make the parts longer, gives no warp several chunks, or would be
  /// for few blocks.
  std::int64_t team_tiles(std::int64_t rows, std::int64_t tiles_of_warp) const {
    const std::int64_t members = column_warps(shape_.head_dim);
    const std::int64_t rounds = (rows + shape_.multiprocessors - 1) / shape_.multiprocessors;
    if (2 * rows < shape_.multiprocessors || rounds >= members) return 0;
    const std::int64_t tiles = tiles_of_warp * members / rounds / kChunkTiles * kChunkTiles;
    return tiles >= 2 * members * kChunkTiles ? tiles : 0;
  }

  /// Cuts the shortest `count` whole rows into chunks.
  void cut_last_rows(std::int64_t count) {
    std::vector<PlannedRow*> whole;
    for (PlannedRow& row : rows_) {
      if (row.whole()) whole.push_back(&row);
    }
    std::stable_sort(whole.begin(), whole.end(), [](const PlannedRow* a, const PlannedRow* b) {
      return a->range.count() < b->range.count();
    });
    for (std::int64_t i = 0; i < count; ++i) {
      PlannedRow& row = *whole[static_cast<std::size_t>(i)];
      row.chunks_from = row.range.first_chunk();
      row.team = false;
    }
  }

  /// Cuts the last `count` chunks, for all KV heads together, into tiles: as many of each row.
  void cut_last_chunks(std::int64_t count) {
    for (bool found = true; found && count > 0;) {
      found = false;
      for (PlannedRow& row : rows_) {
        if (row.tiles_from <= row.chunks_from || count <= 0) continue;
        --row.tiles_from;
        count -= shape_.kv_heads;
        found = true;
      }
    }
  }

  /// Of `items` equal items, those of a last round that would not keep the device busy.
  std::int64_t last_round(std::int64_t items) const {
    const std::int64_t last = items % warps_;
    return 2 * last <= warps_ ? last : 0;
  }

  std::vector<PlannedRow>& rows_;
  const PlanShape& shape_;
  std::int64_t warps_;
};

}  // namespace

void cut_few(std::vector<PlannedRow>& rows, const PlanShape& shape) { FewRows(rows, shape).cut(); }

/// Rows that would last longer than everything else have a fair share in one piece, and a little more, as
/// chunks cost more than their tiles, whose states are written and read again; and more yet where so many
/// states would take too much memory.
void cut_many(std::vector<PlannedRow>& rows, const PlanShape& shape) {
  const std::int64_t fair = fair_share(rows, shape, shape.multiprocessors);
  std::vector<PlannedRow*> cut;
  for (PlannedRow& row : rows) {
    if (row.range.count() > std::max<std::int64_t>(fair, kChunkTiles)) cut.push_back(&row);
  }
  const std::int64_t most = bounds::kMaxAttentionStateBytes / workspace_bytes(shape, 1);
  // Larger heads add chunk to chunk in memory, where a state of its own costs a chunk no more.
  std::int64_t chunks = shape.head_dim > 128 ? 0 : long_piece(23 * fair / 20) / kChunkTiles;
  while (true) {
    std::int64_t states = 0;
    std::int64_t queries = 0;  // of rows that have more than one part
    for (PlannedRow* row : cut) {
      begin_with(*row, chunks);
      const std::int64_t parts = row->range.end_chunk() - row->chunks_from + (chunks > 0 ? 1 : 0);
      states += row->queries * parts;
      queries += parts > 1 ? row->queries : 0;
    }
    if (states <= most || queries == 0) break;
    chunks += (states - most + queries - 1) / queries;
  }
  for (PlannedRow& row : rows) row.result = row.whole() && row.alone;
}

DealtTasks deal_tasks(const std::vector<PlannedItem>& items, const PlanShape& shape) {
  const std::int64_t tasks = std::ssize(items) * shape.kv_heads;
  std::vector<std::vector<PlannedTask>> dealt(
      static_cast<std::size_t>(std::min<std::int64_t>(tasks, shape.multiprocessors)));
  using Load = std::pair<std::int64_t, std::size_t>;  // tiles, block
  std::priority_queue<Load, std::vector<Load>, std::greater<>> least;
  for (std::size_t block = 0; block < dealt.size(); ++block) least.emplace(0, block);
  for (const PlannedItem& item : items) {
    for (std::int32_t head = 0; head < shape.kv_heads; ++head) {
      const auto [load, block] = least.top();
      least.pop();
      dealt[block].push_back({item, head, {}});
      least.emplace(load + item.end_tile - item.first_tile + kTilesOfATask, block);
    }
  }
  DealtTasks all{{0}, {}};
  for (const std::vector<PlannedTask>& mine : dealt) {
    all.tasks.insert(all.tasks.end(), mine.begin(), mine.end());
    all.starts.push_back(static_cast<std::int32_t>(all.tasks.size()));
  }
  return all;
}

}  // namespace fieldprint::backend::cuda
