#include "backend/cuda/plan.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/plan_rows.h"
#include "backend/shared_preface.h"
#include "exact/format.h"

namespace fieldprint::backend::cuda {
namespace {

using exact::kChunkTiles;
using exact::kPageTokens;
using exact::kTilePages;
using exact::kTileTokens;

std::int32_t pages_of(std::int32_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }
std::int32_t tiles_of(std::int32_t tokens) { return (tokens + kTileTokens - 1) / kTileTokens; }

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
    many_.together = rows_of_item(shape_.head_dim) / group_;
  }

  AttentionWork plan() {
    for (std::size_t s = 0; s < sequences_.size(); ++s) add_sequence(s);
    cut_few(few_.rows, shape_);
    cut_many(many_.rows, shape_);
    for (Cut* cut : {&few_, &many_}) {
      for (const PlannedRow& row : cut->rows) add_context(*cut, row);
    }
    add_anchors();
    sort(team_items_, tiles_of_item);
    sort(few_.items, rank_of_few);
    few_.items.insert(few_.items.begin(), team_items_.begin(), team_items_.end());
    sort(many_.items, tiles_of_item);
    return pack();
  }

 private:
  /// How sequences with few or many rows are cut.
  struct Cut {
    std::int32_t together = 1;  ///< queries of a row
    std::vector<PlannedRow> rows;
    std::vector<PlannedItem> items;
  };

  Cut& cut_of(const AttentionSequence& sequence) {
    return sequence.queries * group_ > kColumnRows ? many_ : few_;
  }

  /// Long ones first, so that none is left alone at the end.
  template <typename Rank>
  static void sort(std::vector<PlannedItem>& items, Rank rank) {
    std::stable_sort(items.begin(), items.end(),
                     [&](const PlannedItem& a, const PlannedItem& b) { return rank(a) > rank(b); });
  }
  static std::int32_t tiles_of_item(const PlannedItem& item) { return item.end_tile - item.first_tile; }
  /// Of equal ones anchors first: their tiles have more rows, and last of all they would be waited for.
  static std::int32_t rank_of_few(const PlannedItem& item) {
    const std::int32_t rank = 2 * tiles_of_item(item);
    return item.context == 0 ? rank + 1 : rank;
  }

  void add_sequence(std::size_t index) {
    const AttentionSequence& sequence = sequences_[index];
    const std::int32_t slot = static_cast<std::int32_t>(queries_.size());
    for (std::int32_t q = 0; q < sequence.queries; ++q) {
      PlannedQuery query{};
      query.token = sequence.first_query + q;
      query.sequence = static_cast<std::int32_t>(index);
      query.position = sequence.first_position + q;
      query.sink_block = sequence.blocks[0];
      query.anchor_tokens = sequence.anchor_tokens;
      query.floor_odds = sequence.floor_odds;
      query.ceiling_odds = sequence.ceiling_odds;
      queries_.push_back(query);
    }
    Cut& cut = cut_of(sequence);
    for (std::int32_t q = 0; q < sequence.queries; q += cut.together) {
      const std::int32_t count = std::min(cut.together, sequence.queries - q);
      const TileRange range = context_tiles(sequence, sequence.first_position + q, count, shape_.window);
      const bool alone = range.count() > 0 && sequence.anchor_tokens == 0;
      cut.rows.push_back({index, slot + q, count, range, alone, range.end_chunk(), range.end_chunk()});
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

  void add_context(Cut& cut, const PlannedRow& row) {
    const AttentionSequence& sequence = sequences_[row.sequence];
    const TileRange& range = row.range;
    const std::int32_t block = first_block_[row.sequence] + kTilePages * tiles_of(sequence.anchor_tokens);
    const std::int32_t settled =
        std::max(sequence.first_position - 1 - sequence.anchor_tokens, 0) / kTileTokens;
    const std::int32_t first_state = states_;
    std::int32_t whole_parts = 0;
    std::int32_t tile_parts = 0;
    const auto add = [&](std::int32_t first, std::int32_t end, std::int32_t& parts) {
      auto& items = row.team && first == range.first ? team_items_ : cut.items;
      items.push_back({row.slot, row.queries, block, first, end, states_, 1, settled});
      states_ += row.queries;
      ++parts;
    };
    if (row.result) {
      auto& items = row.team ? team_items_ : cut.items;
      items.push_back({row.slot, row.queries, block, range.first, range.end, -1, 1, settled});
      whole_parts = -1;
    } else {
      const auto tile_of = [&](std::int32_t chunk) {
        return std::clamp(chunk * kChunkTiles, range.first, std::max(range.first, range.end));
      };
      if (tile_of(row.chunks_from) > range.first) add(range.first, tile_of(row.chunks_from), whole_parts);
      for (std::int32_t c = row.chunks_from; c < row.tiles_from; ++c) {
        add(tile_of(c), tile_of(c + 1), whole_parts);
      }
      for (std::int32_t t = tile_of(row.tiles_from); t < range.end; ++t) add(t, t + 1, tile_parts);
    }
    for (std::int32_t i = 0; i < row.queries; ++i) {
      PlannedQuery& query = queries_[static_cast<std::size_t>(row.slot + i)];
      query.state = row.result ? -1 : first_state + i;
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
      const std::int32_t sees = std::min(query.position, query.anchor_tokens);
      // The table holds only the anchor blocks that the sequence itself sees.
      if (sees > seen) block = first_block_[static_cast<std::size_t>(query.sequence)];
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
    std::size_t to_fold = queries_.size();
    while (to_fold > 0 && queries_[to_fold - 1].whole_parts < 0) --to_fold;
    // The fold also takes back what items leave behind. Steps without row items are recorded, and their
    // launches serve others of as many queries.
    std::size_t launched = to_fold;
    if (!few_.items.empty())
      launched = many_.items.empty() ? queries_.size() : std::max<std::size_t>(to_fold, 1);
    const DealtTasks dealt = deal_tasks(many_.items, shape_);
    AttentionWork work{{},
                       static_cast<std::int32_t>(launched),
                       static_cast<std::int32_t>(few_.items.size()),
                       static_cast<std::int32_t>(dealt.tasks.size()),
                       0,
                       states_};
    work.buffer.resize(sizeof(PlanHeader));
    PlanHeader header{};
    header.items = work.items;
    header.row_tasks = work.row_tasks;
    header.queries = static_cast<std::int32_t>(queries_.size());
    header.team_items = static_cast<std::int32_t>(team_items_.size());
    header.to_fold = static_cast<std::int32_t>(to_fold);
    append(work, queries_);
    work.items_at = append(work, few_.items);
    header.row_starts_at = append(work, dealt.starts);
    header.row_tasks_at = append(work, dealt.tasks);
    header.blocks_at = append(work, blocks_);
    std::memcpy(work.buffer.data(), &header, sizeof(header));
    return work;
  }

  std::span<const AttentionSequence> sequences_;
  PlanShape shape_;
  std::int32_t group_;
  Cut few_;
  Cut many_;
  std::vector<PlannedItem> team_items_;
  std::int32_t states_ = 0;
  std::vector<PlannedQuery> queries_;
  std::vector<std::int32_t> first_block_;
  std::vector<std::int32_t> blocks_;
};

}  // namespace

AttentionWork plan_attention_work(std::span<const AttentionSequence> sequences, const PlanShape& shape) {
  return Planner(sequences, shape).plan();
}

std::int64_t workspace_bytes(const PlanShape& shape, std::int64_t states) {
  return states * state_floats(shape.heads, shape.head_dim) * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace fieldprint::backend::cuda
