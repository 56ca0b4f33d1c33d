#include "backend/cuda/plan.h"

#include <algorithm>
#include <cstring>

#include "backend/shared_preface.h"
#include "exact/format.h"

namespace fieldprint::backend::cuda {
namespace {

using exact::kChunkTiles;
using exact::kGroupTiles;
using exact::kPageTokens;

// Warps of a multiprocessor that together read as fast as the memory delivers.
constexpr std::int64_t kBusyWarps = 3;
// Rows of a sequence, for one KV head, up to which its pages are best read row by row.
constexpr std::int32_t kFewRows = 16;

std::int32_t tiles_of(std::int32_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

/// Tiles of the context that some of `queries` queries from `position` on see.
struct TileRange {
  std::int32_t first;
  std::int32_t end;

  std::int32_t count() const { return std::max(end - first, 0); }
};

TileRange context_tiles(const AttentionSequence& sequence, std::int32_t position, std::int32_t queries,
                        std::int32_t window) {
  const std::int32_t start = 1 + sequence.anchor_tokens;
  const std::int32_t last = std::max(position + queries - start, 0);
  const std::int32_t first = window == 0 ? 0 : std::max(position + 1 - window - start, 0);
  return {first / kPageTokens, tiles_of(last)};
}

class Planner {
 public:
  Planner(std::span<const AttentionSequence> sequences, const PlanShape& shape)
      : sequences_(sequences), shape_(shape), group_(shape.heads / shape.kv_heads) {
    const std::int32_t columns = group_ <= 4 ? 4 : group_ <= 8 ? 8 : 16;
    few_.together = columns / group_;
    few_.at_once = kBusyWarps * shape.multiprocessors;
    many_.together = kRowsOfItem / group_;
    many_.at_once = shape.multiprocessors;
  }

  AttentionWork plan() {
    for (const AttentionSequence& sequence : sequences_) add_sequence(sequence);
    choose_part(few_);
    choose_part(many_);
    std::int32_t slot = 0;
    for (std::size_t s = 0; s < sequences_.size(); ++s) {
      add_context(sequences_[s], static_cast<std::size_t>(slot));
      slot += sequences_[s].queries;
    }
    add_anchors();
    sort(few_.items);
    sort(many_.items);
    return pack();
  }

 private:
  static constexpr std::int32_t kWholeRow = 1 << 24;  // tiles; more than any context has

  /// How sequences with few or many rows are cut.
  struct Cut {
    std::int32_t together = 1;      ///< queries of an item
    std::int64_t at_once = 1;       ///< items that keep the device busy
    std::int32_t part = kWholeRow;  ///< tiles of an item of the context
    std::vector<PlannedItem> items;
  };

  Cut& cut_of(const AttentionSequence& sequence) {
    return sequence.queries * group_ <= kFewRows ? few_ : many_;
  }

  /// Long ones first, so that none is left alone at the end.
  static void sort(std::vector<PlannedItem>& items) {
    std::stable_sort(items.begin(), items.end(), [](const PlannedItem& a, const PlannedItem& b) {
      return a.end_tile - a.first_tile > b.end_tile - b.first_tile;
    });
  }

  void add_sequence(const AttentionSequence& sequence) {
    const std::int32_t index = static_cast<std::int32_t>(planned_.size());
    planned_.push_back(
        {sequence.blocks[0], sequence.anchor_tokens, sequence.floor_odds, sequence.ceiling_odds});
    for (std::int32_t q = 0; q < sequence.queries; ++q) {
      queries_.push_back({sequence.first_query + q, index, sequence.first_position + q, 0, 0, 0, -1, -1});
    }
    first_block_.push_back(static_cast<std::int32_t>(blocks_.size()));
    const std::int32_t end = sequence.first_position + sequence.queries;
    const std::int32_t context = tiles_of(std::max(end - 1 - sequence.anchor_tokens, 0));
    const std::int32_t seen = tiles_of(std::min(end - 1, sequence.anchor_tokens));
    const std::int32_t anchors = tiles_of(sequence.anchor_tokens);
    blocks_.insert(blocks_.end(), sequence.blocks + 1, sequence.blocks + 1 + (context > 0 ? anchors : seen));
    if (context > 0) {
      blocks_.insert(blocks_.end(), sequence.blocks + 1 + anchors, sequence.blocks + 1 + anchors + context);
    }
  }

  /// Whole rows need the fewest partial states, but an item should last no longer than the device needs for
  /// everything; else groups, else chunks.
  void choose_part(Cut& cut) {
    std::int64_t total = 0;
    std::int64_t longest = 0;
    for (const AttentionSequence& sequence : sequences_) {
      if (&cut_of(sequence) != &cut) continue;
      for (std::int32_t q = 0; q < sequence.queries; q += cut.together) {
        const TileRange range = context_tiles(sequence, sequence.first_position + q,
                                              std::min(cut.together, sequence.queries - q), shape_.window);
        total += range.count();
        longest = std::max<std::int64_t>(longest, range.count());
      }
    }
    const std::int64_t fair = total * shape_.kv_heads / cut.at_once;
    if (longest <= fair || longest <= kChunkTiles) return;
    cut.part = std::min<std::int64_t>(kGroupTiles, longest) <= fair ? kGroupTiles : kChunkTiles;
  }

  void add_context(const AttentionSequence& sequence, std::size_t slot) {
    const std::int32_t block =
        first_block_[static_cast<std::size_t>(queries_[slot].sequence)] + tiles_of(sequence.anchor_tokens);
    Cut& cut = cut_of(sequence);
    const std::int32_t part = cut.part;
    for (std::int32_t q = 0; q < sequence.queries; q += cut.together) {
      const std::int32_t count = std::min(cut.together, sequence.queries - q);
      const TileRange range = context_tiles(sequence, sequence.first_position + q, count, shape_.window);
      const std::int32_t first_part = range.first / part;
      const std::int32_t parts = range.count() == 0 ? 0 : (range.end + part - 1) / part - first_part;
      for (std::int32_t i = 0; i < count; ++i) {
        PlannedQuery& query = queries_[slot + static_cast<std::size_t>(q + i)];
        query.state = states_ + i;
        query.state_stride = count;
        query.parts = parts;
        query.first_chunk = part == kChunkTiles ? first_part : -1;
      }
      for (std::int32_t p = first_part; p < first_part + parts; ++p) {
        cut.items.push_back({static_cast<std::int32_t>(slot) + q, count, block,
                             std::max(range.first, p * part), std::min(range.end, (p + 1) * part), states_, 1,
                             0});
        states_ += count;
      }
    }
  }

  /// Neighbouring sequences with the same anchors share items, so that a page is read once for many queries.
  void add_anchors() {
    std::size_t slot = 0;
    for (std::size_t first = 0; first < sequences_.size();) {
      Cut& cut = cut_of(sequences_[first]);
      std::size_t last = first;
      std::size_t end = slot;
      for (const std::size_t shared = shared_preface_end(sequences_, first);
           last < shared && &cut_of(sequences_[last]) == &cut; ++last) {
        end += static_cast<std::size_t>(sequences_[last].queries);
      }
      while (sequences_[first].anchor_tokens > 0 && slot < end) {
        const std::size_t count = std::min(end - slot, static_cast<std::size_t>(cut.together));
        add_anchor_item(cut, slot, count);
        slot += count;
      }
      slot = end;
      first = last;
    }
  }

  void add_anchor_item(Cut& cut, std::size_t slot, std::size_t count) {
    std::int32_t seen = 0;
    std::int32_t block = 0;
    for (std::size_t i = slot; i < slot + count; ++i) {
      PlannedQuery& query = queries_[i];
      const std::size_t s = static_cast<std::size_t>(query.sequence);
      const std::int32_t sees = std::min(query.position, planned_[s].anchor_tokens);
      // The table holds only the anchor blocks that the sequence itself sees.
      if (sees > seen) block = first_block_[s];
      seen = std::max(seen, sees);
    }
    if (seen == 0) return;
    for (std::size_t i = slot; i < slot + count; ++i) {
      queries_[i].anchor_state = states_ + static_cast<std::int32_t>(i - slot);
    }
    cut.items.push_back({static_cast<std::int32_t>(slot), static_cast<std::int32_t>(count), block, 0,
                         tiles_of(seen), states_, 0, 0});
    states_ += static_cast<std::int32_t>(count);
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
    header.sequences_at = append(work, planned_);
    header.queries_at = append(work, queries_);
    header.items_at = append(work, few_.items);
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
