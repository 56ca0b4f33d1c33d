#include "backend/cuda/plan.h"

#include <algorithm>
#include <cstring>

#include "backend/shared_preface.h"
#include "base/check.h"
#include "exact/format.h"

namespace fieldprint::backend::cuda {
namespace {

using exact::kChunkTiles;
using exact::kGroupTiles;
using exact::kPageTokens;

// Warps of a multiprocessor that together read as fast as the memory delivers.
constexpr std::int64_t kBusyWarps = 3;

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
      : sequences_(sequences), shape_(shape), together_(queries_per_item(shape.heads, shape.kv_heads)) {}

  AttentionWork plan() {
    for (const AttentionSequence& sequence : sequences_) add_sequence(sequence);
    choose_part();
    std::int32_t slot = 0;
    for (std::size_t s = 0; s < sequences_.size(); ++s) {
      add_context(sequences_[s], static_cast<std::size_t>(slot));
      slot += sequences_[s].queries;
    }
    add_anchors();
    std::stable_sort(items_.begin(), items_.end(), [](const PlannedItem& a, const PlannedItem& b) {
      return a.end_tile - a.first_tile > b.end_tile - b.first_tile;
    });
    return pack();
  }

 private:
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

  /// Whole rows need the fewest partial states, but an item should last no longer than a few warps of each
  /// multiprocessor need for everything; else groups, else chunks.
  void choose_part() {
    std::int64_t total = 0;
    std::int64_t longest = 0;
    for (const AttentionSequence& sequence : sequences_) {
      for (std::int32_t q = 0; q < sequence.queries; q += together_) {
        const TileRange range = context_tiles(sequence, sequence.first_position + q,
                                              std::min(together_, sequence.queries - q), shape_.window);
        total += range.count();
        longest = std::max<std::int64_t>(longest, range.count());
      }
    }
    const std::int64_t fair = total * shape_.kv_heads / (shape_.multiprocessors * kBusyWarps);
    if (longest <= fair || longest <= kChunkTiles) {
      part_ = kWholeRow;
    } else {
      part_ = std::min<std::int64_t>(kGroupTiles, longest) <= fair ? kGroupTiles : kChunkTiles;
    }
  }

  void add_context(const AttentionSequence& sequence, std::size_t slot) {
    const std::int32_t block =
        first_block_[static_cast<std::size_t>(queries_[slot].sequence)] + tiles_of(sequence.anchor_tokens);
    for (std::int32_t q = 0; q < sequence.queries; q += together_) {
      const std::int32_t count = std::min(together_, sequence.queries - q);
      const TileRange range = context_tiles(sequence, sequence.first_position + q, count, shape_.window);
      const std::int32_t first_part = range.first / part_;
      const std::int32_t parts = range.count() == 0 ? 0 : (range.end + part_ - 1) / part_ - first_part;
      for (std::int32_t i = 0; i < count; ++i) {
        PlannedQuery& query = queries_[slot + static_cast<std::size_t>(q + i)];
        query.state = states_ + i;
        query.state_stride = count;
        query.parts = parts;
        query.first_chunk = part_ == kChunkTiles ? first_part : -1;
      }
      for (std::int32_t p = first_part; p < first_part + parts; ++p) {
        items_.push_back({static_cast<std::int32_t>(slot) + q, count, block, std::max(range.first, p * part_),
                          std::min(range.end, (p + 1) * part_), states_, 1, 0});
        states_ += count;
      }
    }
  }

  /// Neighbouring sequences with the same anchors share items, so that a page is read once for many queries.
  void add_anchors() {
    std::size_t slot = 0;
    for (std::size_t first = 0; first < sequences_.size();) {
      const std::size_t last = shared_preface_end(sequences_, first);
      std::size_t end = slot;
      for (std::size_t s = first; s < last; ++s) end += static_cast<std::size_t>(sequences_[s].queries);
      while (sequences_[first].anchor_tokens > 0 && slot < end) {
        const std::size_t count = std::min(end - slot, static_cast<std::size_t>(together_));
        add_anchor_item(slot, count);
        slot += count;
      }
      slot = end;
      first = last;
    }
  }

  void add_anchor_item(std::size_t slot, std::size_t count) {
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
    items_.push_back({static_cast<std::int32_t>(slot), static_cast<std::int32_t>(count), block, 0,
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
    AttentionWork work{{}, static_cast<std::int32_t>(queries_.size()), states_};
    work.buffer.resize(sizeof(PlanHeader));
    PlanHeader header{};
    header.items = static_cast<std::int32_t>(items_.size());
    header.queries = work.queries;
    header.sequences_at = append(work, planned_);
    header.queries_at = append(work, queries_);
    header.items_at = append(work, items_);
    header.blocks_at = append(work, blocks_);
    std::memcpy(work.buffer.data(), &header, sizeof(header));
    return work;
  }

  static constexpr std::int32_t kWholeRow = 1 << 24;  // tiles; more than any context has

  std::span<const AttentionSequence> sequences_;
  PlanShape shape_;
  std::int32_t together_;
  std::int32_t part_ = kWholeRow;
  std::int32_t states_ = 0;
  std::vector<PlannedSequence> planned_;
  std::vector<PlannedQuery> queries_;
  std::vector<PlannedItem> items_;
  std::vector<std::int32_t> first_block_;
  std::vector<std::int32_t> blocks_;
};

}  // namespace

const PlanHeader& AttentionWork::header() const {
  CHECK(buffer.size() >= sizeof(PlanHeader), "an empty plan");
  return *reinterpret_cast<const PlanHeader*>(buffer.data());
}

std::int32_t queries_per_item(std::int32_t heads, std::int32_t kv_heads) {
  const std::int32_t group = heads / kv_heads;
  const std::int32_t columns = group <= 4 ? 4 : group <= 8 ? 8 : 16;
  return columns / group;
}

AttentionWork plan_attention_work(std::span<const AttentionSequence> sequences, const PlanShape& shape) {
  return Planner(sequences, shape).plan();
}

std::int64_t workspace_bytes(const PlanShape& shape, std::int64_t states) {
  return states * shape.heads * (2 + shape.head_dim) * static_cast<std::int64_t>(sizeof(float));
}

}  // namespace fieldprint::backend::cuda
