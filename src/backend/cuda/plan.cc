#include "backend/cuda/plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "backend/shared_preface.h"
#include "exact/format.h"

namespace fieldprint::backend::cuda {
namespace {

using exact::kChunkTiles;
using exact::kPageTokens;
using exact::kTilePages;
using exact::kTileTokens;

// Warps of a multiprocessor that together read as fast as the memory delivers.
constexpr std::int64_t kBusyWarps = 3;

std::int32_t pages_of(std::int32_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }
std::int32_t tiles_of(std::int32_t tokens) { return (tokens + kTileTokens - 1) / kTileTokens; }

/// Tiles of a segment.
struct TileRange {
  std::int32_t first;
  std::int32_t end;

  std::int32_t count() const { return std::max(end - first, 0); }
  std::int32_t first_chunk() const { return first / kChunkTiles; }
  std::int32_t end_chunk() const { return count() == 0 ? first_chunk() : (end + kChunkTiles - 1) / kChunkTiles; }
};

/// Tiles of the context that some of `queries` queries from `position` on see.
TileRange context_tiles(const AttentionSequence& sequence, std::int32_t position, std::int32_t queries,
                        std::int32_t window) {
  const std::int32_t start = 1 + sequence.anchor_tokens;
  const std::int32_t last = std::max(position + queries - start, 0);
  const std::int32_t first = window == 0 ? 0 : std::max(position + 1 - window - start, 0);
  return {first / kTileTokens, tiles_of(last)};
}

class Planner {
 public:
  Planner(std::span<const AttentionSequence> sequences, const PlanShape& shape)
      : sequences_(sequences), shape_(shape), group_(shape.heads / shape.kv_heads) {
    few_.together = kColumnRows / group_;
    many_.together = kRowsOfItem / group_;
  }

  AttentionWork plan() {
    for (std::size_t s = 0; s < sequences_.size(); ++s) add_sequence(s);
    cut_few();
    cut_many();
    for (Cut* cut : {&few_, &many_}) {
      for (const Row& row : cut->rows) add_context(*cut, row);
    }
    add_anchors();
    sort(few_.items);
    sort(many_.items);
    return pack();
  }

 private:
  /// Queries of one sequence that are computed together, and how their context is cut: whole, or chunks up to
  /// tiles_from and then tiles.
  struct Row {
    std::size_t sequence;
    std::int32_t slot;  ///< of the first query
    std::int32_t queries;
    TileRange range;
    bool whole;
    std::int32_t tiles_from;  ///< a chunk
  };

  /// How sequences with few or many rows are cut.
  struct Cut {
    std::int32_t together = 1;  ///< queries of a row
    std::vector<Row> rows;
    std::vector<PlannedItem> items;

    std::int64_t tiles() const {
      return std::accumulate(rows.begin(), rows.end(), std::int64_t{0},
                             [](std::int64_t sum, const Row& row) { return sum + row.range.count(); });
    }
  };

  Cut& cut_of(const AttentionSequence& sequence) {
    return sequence.queries * group_ <= kColumnRows ? few_ : many_;
  }

  /// Long ones first, so that none is left alone at the end.
  static void sort(std::vector<PlannedItem>& items) {
    std::stable_sort(items.begin(), items.end(), [](const PlannedItem& a, const PlannedItem& b) {
      return a.end_tile - a.first_tile > b.end_tile - b.first_tile;
    });
  }

  void add_sequence(std::size_t index) {
    const AttentionSequence& sequence = sequences_[index];
    planned_.push_back(
        {sequence.blocks[0], sequence.anchor_tokens, sequence.floor_odds, sequence.ceiling_odds});
    const std::int32_t slot = static_cast<std::int32_t>(queries_.size());
    for (std::int32_t q = 0; q < sequence.queries; ++q) {
      queries_.push_back({sequence.first_query + q, static_cast<std::int32_t>(index),
                          sequence.first_position + q, sequence.anchor_tokens, 0, 0, 0, 0, 0, 0, 0, 0});
    }
    Cut& cut = cut_of(sequence);
    for (std::int32_t q = 0; q < sequence.queries; q += cut.together) {
      const std::int32_t count = std::min(cut.together, sequence.queries - q);
      const TileRange range = context_tiles(sequence, sequence.first_position + q, count, shape_.window);
      cut.rows.push_back({index, slot + q, count, range, true, range.end_chunk()});
    }
    first_block_.push_back(static_cast<std::int32_t>(blocks_.size()));
    const std::int32_t end = sequence.first_position + sequence.queries;
    const std::int32_t context = pages_of(std::max(end - 1 - sequence.anchor_tokens, 0));
    const std::int32_t seen = pages_of(std::min(end - 1, sequence.anchor_tokens));
    const std::int32_t anchors = pages_of(sequence.anchor_tokens);
    add_blocks(sequence.blocks + 1, context > 0 ? anchors : seen);
    if (context > 0) add_blocks(sequence.blocks + 1 + anchors, context);
  }

  /// A last tile of one page names it twice, so that kernels may read two.
  void add_blocks(const std::int32_t* first, std::int32_t count) {
    blocks_.insert(blocks_.end(), first, first + count);
    for (; count % kTilePages != 0; ++count) blocks_.push_back(blocks_.back());
  }

  /// Whole rows need the fewest partial states, but an item should last no longer than the device needs for
  /// everything; else chunks. A last round that would leave most warps idle is cut finer.
  void cut_few() {
    const std::int64_t kv_heads = shape_.kv_heads;
    const std::int64_t fair = few_.tiles() * kv_heads / (kBusyWarps * shape_.multiprocessors);
    for (Row& row : few_.rows) row.whole = row.range.count() <= fair;

    std::vector<Row*> whole;
    for (Row& row : few_.rows) {
      if (row.whole) whole.push_back(&row);
    }
    std::stable_sort(whole.begin(), whole.end(),
                     [](const Row* a, const Row* b) { return a->range.count() < b->range.count(); });
    const std::int64_t rows = last_round(static_cast<std::int64_t>(whole.size()) * kv_heads) / kv_heads;
    for (std::int64_t i = 0; i < rows; ++i) whole[static_cast<std::size_t>(i)]->whole = false;

    std::int64_t tiles = 0;
    for (const Row& row : few_.rows) tiles += row.whole ? 0 : row.range.count();
    std::int64_t chunks = last_round((tiles * kv_heads + kChunkTiles - 1) / kChunkTiles);
    for (bool found = true; found && chunks > 0;) {
      found = false;
      for (Row& row : few_.rows) {
        if (row.whole || row.tiles_from <= row.range.first_chunk() || chunks <= 0) continue;
        --row.tiles_from;
        chunks -= kv_heads;
        found = true;
      }
    }
  }

  /// Of `items` equal items, those of a last round that would not keep the device busy.
  std::int64_t last_round(std::int64_t items) const {
    const std::int64_t warps = static_cast<std::int64_t>(shape_.multiprocessors) * column_warps(shape_.head_dim);
    const std::int64_t last = items % warps;
    return 2 * last <= warps ? last : 0;
  }

  void cut_many() {
    const std::int64_t fair = many_.tiles() * shape_.kv_heads / shape_.multiprocessors;
    for (Row& row : many_.rows) {
      row.whole = row.range.count() <= std::max<std::int64_t>(fair, kChunkTiles);
    }
  }

  void add_context(Cut& cut, const Row& row) {
    const AttentionSequence& sequence = sequences_[row.sequence];
    const TileRange& range = row.range;
    const std::int32_t block = first_block_[row.sequence] + kTilePages * tiles_of(sequence.anchor_tokens);
    const std::int32_t settled =
        std::max(sequence.first_position - 1 - sequence.anchor_tokens, 0) / kTileTokens;
    const std::int32_t first_state = states_;
    std::int32_t whole_parts = 0;
    std::int32_t tile_parts = 0;
    const auto add = [&](std::int32_t first, std::int32_t end, std::int32_t& parts) {
      cut.items.push_back({row.slot, row.queries, block, first, end, states_, 1, settled});
      states_ += row.queries;
      ++parts;
    };
    if (range.count() == 0) {
      // The queries see none of the context.
    } else if (row.whole) {
      add(range.first, range.end, whole_parts);
    } else {
      for (std::int32_t c = range.first_chunk(); c < row.tiles_from; ++c) {
        add(std::max(range.first, c * kChunkTiles), std::min(range.end, (c + 1) * kChunkTiles), whole_parts);
      }
      for (std::int32_t t = std::max(range.first, row.tiles_from * kChunkTiles); t < range.end; ++t) {
        add(t, t + 1, tile_parts);
      }
    }
    for (std::int32_t i = 0; i < row.queries; ++i) {
      PlannedQuery& query = queries_[static_cast<std::size_t>(row.slot + i)];
      query.state = first_state + i;
      query.state_stride = row.queries;
      query.whole_parts = whole_parts;
      query.tile_parts = tile_parts;
      query.skipped_tiles = whole_parts == 0 ? range.first % kChunkTiles : 0;
    }
  }

  /// Neighbouring sequences with the same anchors share items, so that a page is read once for many queries.
  void add_anchors() {
    std::size_t slot = 0;
    for (std::size_t first = 0; first < sequences_.size();) {
      const std::size_t shared = shared_preface_end(sequences_, first);
      std::int32_t settled = tiles_of(sequences_[first].anchor_tokens);
      for (std::size_t s = first; s < shared; ++s) {
        const AttentionSequence& sequence = sequences_[s];
        if (sequence.first_position > sequence.anchor_tokens) continue;
        settled = std::min(settled, std::max(sequence.first_position - 1, 0) / kTileTokens);
      }
      while (first < shared) {
        Cut& cut = cut_of(sequences_[first]);
        std::size_t end = slot;
        std::size_t last = first;
        for (; last < shared && &cut_of(sequences_[last]) == &cut; ++last) {
          end += static_cast<std::size_t>(sequences_[last].queries);
        }
        while (sequences_[first].anchor_tokens > 0 && slot < end) {
          const std::size_t count = std::min(end - slot, static_cast<std::size_t>(cut.together));
          add_anchor_items(cut, slot, count, settled);
          slot += count;
        }
        slot = end;
        first = last;
      }
    }
  }

  void add_anchor_items(Cut& cut, std::size_t slot, std::size_t count, std::int32_t settled) {
    std::int32_t seen = 0;
    std::int32_t block = 0;
    bool tiles = &cut == &few_;
    for (std::size_t i = slot; i < slot + count; ++i) {
      const PlannedQuery& query = queries_[i];
      const std::size_t s = static_cast<std::size_t>(query.sequence);
      const std::int32_t sees = std::min(query.position, planned_[s].anchor_tokens);
      // The table holds only the anchor blocks that the sequence itself sees.
      if (sees > seen) block = first_block_[s];
      seen = std::max(seen, sees);
      // Where the context is cut so fine, the anchors would be what everything waits for.
      tiles = tiles && query.whole_parts == 0;
    }
    if (seen == 0) return;
    const std::int32_t end = tiles_of(seen);
    for (std::size_t i = slot; i < slot + count; ++i) {
      queries_[i].anchor_state = states_ + static_cast<std::int32_t>(i - slot);
      queries_[i].anchor_stride = static_cast<std::int32_t>(count);
      queries_[i].anchor_parts = tiles ? end : 1;
    }
    const std::int32_t part = tiles ? 1 : end;
    for (std::int32_t t = 0; t < end; t += part) {
      cut.items.push_back({static_cast<std::int32_t>(slot), static_cast<std::int32_t>(count), block, t,
                           t + part, states_, 0, settled});
      states_ += static_cast<std::int32_t>(count);
    }
  }

  template <typename T>
  std::int32_t append(AttentionWork& work, const std::vector<T>& values) const {
    const std::size_t at = (work.buffer.size() + 15) / 16 * 16;
    work.buffer.resize(at + values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(work.buffer.data() + at, values.data(), values.size() * sizeof(T));
    return static_cast<std::int32_t>(at);
  }

  AttentionWork pack() const {
    AttentionWork work{{},
                       static_cast<std::int32_t>(queries_.size()),
                       static_cast<std::int32_t>(few_.items.size()),
                       static_cast<std::int32_t>(many_.items.size()),
                       states_};
    work.buffer.resize(sizeof(PlanHeader));
    PlanHeader header{};
    header.items = work.items;
    header.row_items = work.row_items;
    header.queries = work.queries;
    append(work, few_.items);
    header.sequences_at = append(work, planned_);
    header.queries_at = append(work, queries_);
    header.row_items_at = append(work, many_.items);
    header.blocks_at = append(work, blocks_);
    std::memcpy(work.buffer.data(), &header, sizeof(header));
    return work;
  }

  std::span<const AttentionSequence> sequences_;
  PlanShape shape_;
  std::int32_t group_;
  Cut few_;
  Cut many_;
  std::int32_t states_ = 0;
  std::vector<PlannedSequence> planned_;
  std::vector<PlannedQuery> queries_;
  std::vector<std::int32_t> first_block_;
  std::vector<std::int32_t> blocks_;
};

}  // namespace

AttentionWork plan_attention_work(std::span<const AttentionSequence> sequences, const PlanShape& shape) {
  return Planner(sequences, shape).plan();
}

std::int64_t workspace_bytes(const PlanShape& shape, std::int64_t states) {
  return states * shape.heads * (2 + shape.head_dim) * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace fieldprint::backend::cuda
