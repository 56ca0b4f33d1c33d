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

std::int32_t pages_of(std::int32_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }
std::int32_t tiles_of(std::int32_t tokens) { return (tokens + kTileTokens - 1) / kTileTokens; }

/// Tiles of a segment.
struct TileRange {
  std::int32_t first;
  std::int32_t end;

  std::int32_t count() const { return std::max(end - first, 0); }
  std::int32_t first_chunk() const { return first / kChunkTiles; }
  std::int32_t end_chunk() const {
    return count() == 0 ? first_chunk() : (end + kChunkTiles - 1) / kChunkTiles;
  }
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
    many_.together = rows_of_item(shape_.head_dim) / group_;
  }

  AttentionWork plan() {
    for (std::size_t s = 0; s < sequences_.size(); ++s) add_sequence(s);
    cut_few();
    cut_many();
    for (Cut* cut : {&few_, &many_}) {
      for (const Row& row : cut->rows) add_context(*cut, row);
    }
    add_anchors();
    sort(team_items_, tiles_of_item);
    sort(few_.items, rank_of_few);
    few_.items.insert(few_.items.begin(), team_items_.begin(), team_items_.end());
    sort(many_.items, tiles_of_item);
    return pack();
  }

 private:
  /// Queries of one sequence that are computed together, and how their context is cut: the chunks before
  /// chunks_from are one part, those before tiles_from a part each, and the rest tiles.
  struct Row {
    std::size_t sequence;
    std::int32_t slot;  ///< of the first query
    std::int32_t queries;
    TileRange range;
    std::int32_t chunks_from;
    std::int32_t tiles_from;
    bool result = false;  ///< nothing is left to fold: an item makes the result
    bool team = false;    ///< the first part is for all warps of a block

    bool whole() const { return chunks_from == range.end_chunk(); }
    std::int32_t tiles_after(std::int32_t chunk) const {
      return std::max(range.end - std::max(range.first, chunk * kChunkTiles), 0);
    }
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
      cut.rows.push_back({index, slot + q, count, range, range.end_chunk(), range.end_chunk()});
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

  /// Few parts make few states, but no warp should still be at work when the others have nothing left: each
  /// has most of its fair share in one piece, and comes back for chunks, and for tiles at last. What is
  /// measured best on an H100 is 17/20 of the share, and tiles for an eighth of the warps' last chunks.
  void cut_few() {
    const std::int64_t kv_heads = shape_.kv_heads;
    const std::int64_t fair = few_.tiles() * kv_heads / warps();
    const std::int64_t longest = 17 * fair / 20 / kChunkTiles * kChunkTiles;
    std::int64_t whole_rows = 0;
    for (const Row& row : few_.rows) whole_rows += row.range.count() <= longest ? 1 : 0;
    const std::int64_t team = team_tiles((std::ssize(few_.rows) - whole_rows) * kv_heads, 17 * fair / 20);
    for (Row& row : few_.rows) {
      if (row.range.count() <= longest) continue;
      row.team = team > 0;
      // A piece of two chunks saves a state, one of a single chunk nothing.
      const std::int64_t tiles = row.team ? team : longest < 2 * kChunkTiles ? 0 : longest;
      const std::int32_t from = row.range.first_chunk() + static_cast<std::int32_t>(tiles) / kChunkTiles;
      row.chunks_from = std::min(from, row.range.end_chunk());
    }
    cut_last_rows((last_round(whole_rows * kv_heads) + kv_heads - 1) / kv_heads);

    std::int64_t tiles = 0;
    for (const Row& row : few_.rows) tiles += row.tiles_after(row.chunks_from);
    const std::int64_t chunks = (tiles * kv_heads + kChunkTiles - 1) / kChunkTiles;
    cut_last_chunks(chunks < warps() ? last_round(chunks) : warps() / 8);
    for (Row& row : few_.rows) row.result = row.whole() && is_alone(row);
  }

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
    std::vector<Row*> whole;
    for (Row& row : few_.rows) {
      if (row.whole()) whole.push_back(&row);
    }
    std::stable_sort(whole.begin(), whole.end(),
                     [](const Row* a, const Row* b) { return a->range.count() < b->range.count(); });
    for (std::int64_t i = 0; i < count; ++i) {
      Row& row = *whole[static_cast<std::size_t>(i)];
      row.chunks_from = row.range.first_chunk();
      row.team = false;
    }
  }

  /// Cuts the last `count` chunks, for all KV heads together, into tiles: as many of each row.
  void cut_last_chunks(std::int64_t count) {
    for (bool found = true; found && count > 0;) {
      found = false;
      for (Row& row : few_.rows) {
        if (row.tiles_from <= row.chunks_from || count <= 0) continue;
        --row.tiles_from;
        count -= shape_.kv_heads;
        found = true;
      }
    }
  }

  std::int64_t warps() const {
    return static_cast<std::int64_t>(shape_.multiprocessors) * column_warps(shape_.head_dim);
  }
  /// Of `items` equal items, those of a last round that would not keep the device busy.
  std::int64_t last_round(std::int64_t items) const {
    const std::int64_t last = items % warps();
    return 2 * last <= warps() ? last : 0;
  }

  void cut_many() {
    const std::int64_t fair = many_.tiles() * shape_.kv_heads / shape_.multiprocessors;
    for (Row& row : many_.rows) {
      if (row.range.count() > std::max<std::int64_t>(fair, kChunkTiles)) {
        row.chunks_from = row.range.first_chunk();
      } else {
        row.result = is_alone(row);
      }
    }
  }

  /// The context is all there is besides the sink.
  bool is_alone(const Row& row) const {
    return row.range.count() > 0 && sequences_[row.sequence].anchor_tokens == 0;
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
    AttentionWork work{{},
                       static_cast<std::int32_t>(launched),
                       static_cast<std::int32_t>(few_.items.size()),
                       static_cast<std::int32_t>(many_.items.size()),
                       0,
                       states_};
    work.buffer.resize(sizeof(PlanHeader));
    PlanHeader header{};
    header.items = work.items;
    header.row_items = work.row_items;
    header.queries = static_cast<std::int32_t>(queries_.size());
    header.team_items = static_cast<std::int32_t>(team_items_.size());
    header.to_fold = static_cast<std::int32_t>(to_fold);
    append(work, queries_);
    work.items_at = append(work, few_.items);
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
