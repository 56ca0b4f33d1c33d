#include "backend/cuda/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace fieldprint::backend::cuda {
namespace {

template <typename T>
std::vector<T> array_at(const AttentionWork& work, std::int32_t offset, std::int32_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  EXPECT_LE(static_cast<std::size_t>(offset) + values.size() * sizeof(T), work.buffer.size());
  if (count > 0) std::memcpy(values.data(), work.buffer.data() + offset, values.size() * sizeof(T));
  return values;
}

PlanHeader header_of(const AttentionWork& work) {
  PlanHeader header{};
  std::memcpy(&header, work.buffer.data(), sizeof(header));
  return header;
}

std::int32_t tiles_of(std::int32_t tokens) { return (tokens + 63) / 64; }

struct Batch {
  std::vector<std::vector<std::int32_t>> tables;
  std::vector<AttentionSequence> sequences;
};

/// Sequences whose tables hold exactly what their queries see; every second shares its neighbour's preface.
Batch random_batch(std::mt19937_64& random) {
  const auto below = [&](std::int32_t limit) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(limit));
  };
  Batch batch;
  std::int32_t next_block = 0;
  std::int32_t token = 0;
  const std::int32_t count = 1 + below(6);
  for (std::int32_t s = 0; s < count; ++s) {
    AttentionSequence sequence{};
    const bool shares = s % 2 == 1;
    sequence.anchor_tokens = shares ? batch.sequences.back().anchor_tokens : below(3) * below(150);
    sequence.first_position = below(2) * below(9000);
    sequence.queries = below(2) == 0 ? 1 : 1 + below(400);
    sequence.first_query = token;
    sequence.ceiling_odds = std::numeric_limits<float>::infinity();
    token += sequence.queries;
    std::vector<std::int32_t> table;
    for (std::int32_t b = 0; b <= tiles_of(sequence.anchor_tokens); ++b) {
      table.push_back(shares ? batch.tables.back()[static_cast<std::size_t>(b)] : next_block++);
    }
    const std::int32_t seen = sequence.first_position + sequence.queries - 1 - sequence.anchor_tokens;
    for (std::int32_t b = 0; b < tiles_of(std::max(seen, 0)); ++b) table.push_back(next_block++);
    batch.tables.push_back(table);
    batch.sequences.push_back(sequence);
  }
  for (std::size_t s = 0; s < batch.tables.size(); ++s) batch.sequences[s].blocks = batch.tables[s].data();
  return batch;
}

/// What a plan makes each query do: for each of its states, the blocks in order.
using Visits = std::map<std::int32_t, std::map<std::int32_t, std::vector<std::int32_t>>>;

Visits visits_of(const AttentionWork& work, const PlanShape& shape) {
  const PlanHeader header = header_of(work);
  const auto blocks = array_at<std::int32_t>(
      work, header.blocks_at, (static_cast<std::int32_t>(work.buffer.size()) - header.blocks_at) / 4);
  Visits visits;
  const auto visit = [&](const std::vector<PlannedItem>& items, std::int32_t rows) {
    for (const PlannedItem& item : items) {
      EXPECT_LT(item.first_tile, item.end_tile);
      EXPECT_LE(item.queries * (shape.heads / shape.kv_heads), rows);
      for (std::int32_t q = 0; q < item.queries; ++q) {
        auto& seen = visits[item.first_query + q][item.state + q];
        EXPECT_TRUE(seen.empty()) << "two items write one state";
        for (std::int32_t t = item.first_tile; t < item.end_tile; ++t) {
          seen.push_back(blocks.at(static_cast<std::size_t>(item.block + t)));
        }
      }
    }
  };
  visit(array_at<PlannedItem>(work, header.items_at, header.items), 16);
  visit(array_at<PlannedItem>(work, header.row_items_at, header.row_items), kRowsOfItem);
  return visits;
}

TEST(CudaPlan, EveryQueryMeetsEveryTileThatItSeesOnceInOrder) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    SCOPED_TRACE("round " + std::to_string(round));
    const Batch batch = random_batch(random);
    constexpr std::int32_t kGroups[] = {1, 3, 4, 7, 16};
    constexpr std::int32_t kWindows[] = {0, 0, 1, 100, 3000};
    constexpr std::int32_t kProcessors[] = {1, 8, 132};
    const PlanShape shape{2 * kGroups[random() % 5], 2, random() % 2 == 0 ? 128 : 256, kWindows[random() % 5],
                          kProcessors[random() % 3]};
    const AttentionWork work = plan_attention_work(batch.sequences, shape);
    const PlanHeader header = header_of(work);
    const auto queries = array_at<PlannedQuery>(work, header.queries_at, header.queries);
    Visits visits = visits_of(work, shape);
    std::set<std::int32_t> states;
    std::size_t slot = 0;
    for (std::size_t s = 0; s < batch.sequences.size(); ++s) {
      const AttentionSequence& sequence = batch.sequences[s];
      const std::int32_t anchors = sequence.anchor_tokens;
      const std::int32_t* context = sequence.blocks + 1 + tiles_of(anchors);
      for (std::int32_t q = 0; q < sequence.queries; ++q, ++slot) {
        const PlannedQuery& query = queries.at(slot);
        EXPECT_EQ(query.token, sequence.first_query + q);
        EXPECT_EQ(query.sequence, static_cast<std::int32_t>(s));
        EXPECT_EQ(query.position, sequence.first_position + q);
        auto& mine = visits[static_cast<std::int32_t>(slot)];
        std::vector<std::int32_t> met;
        for (std::int32_t p = 0; p < query.parts; ++p) {
          const std::int32_t state = query.state + p * query.state_stride;
          EXPECT_TRUE(states.insert(state).second);
          met.insert(met.end(), mine[state].begin(), mine[state].end());
          mine.erase(state);
        }
        const std::int32_t last = std::max(query.position - anchors, 0);
        const std::int32_t first =
            shape.window == 0 ? 0 : std::max(query.position - shape.window - anchors, 0);
        // Neighbours in an item may see more, never less.
        for (std::int32_t t = first / 64; t < tiles_of(last); ++t) {
          EXPECT_EQ(std::count(met.begin(), met.end(), context[t]), 1);
        }
        EXPECT_TRUE(std::is_sorted(met.begin(), met.end()));
        if (std::min(query.position, anchors) > 0) {
          ASSERT_GE(query.anchor_state, 0);
          EXPECT_TRUE(states.insert(query.anchor_state).second);
          const auto& seen = mine[query.anchor_state];
          for (std::int32_t t = 0; t < tiles_of(std::min(query.position, anchors)); ++t) {
            EXPECT_EQ(seen.at(static_cast<std::size_t>(t)), sequence.blocks[1 + t]);
          }
        }
        if (query.anchor_state >= 0) mine.erase(query.anchor_state);
        EXPECT_TRUE(mine.empty()) << "an item that no query reads";
      }
    }
    EXPECT_EQ(slot, queries.size());
    EXPECT_TRUE(states.empty() || *states.rbegin() < work.states);
    if (HasFailure()) return;
  }
}

TEST(CudaPlan, DecodeStepsHaveNoRowItems) {
  std::vector<std::int32_t> table(200);
  for (std::size_t b = 0; b < table.size(); ++b) table[b] = static_cast<std::int32_t>(b);
  std::vector<AttentionSequence> sequences;
  for (std::int32_t s = 0; s < 5; ++s) {
    sequences.push_back({s, 1, 2000 * s + 10, 0, table.data(), 0.0F, std::numeric_limits<float>::infinity()});
  }
  const AttentionWork work = plan_attention_work(sequences, {32, 8, 128, 0, 132});
  EXPECT_EQ(work.row_items, 0);
  EXPECT_GT(work.items, 0);
}

TEST(CudaPlan, QueriesThatShareAnchorsShareItems) {
  std::vector<std::vector<std::int32_t>> tables;
  std::vector<AttentionSequence> sequences;
  for (std::int32_t s = 0; s < 64; ++s) {
    tables.push_back({0, 1, 2, 3 + s});
    sequences.push_back({s, 1, 140, 128, nullptr, 0.0F, std::numeric_limits<float>::infinity()});
  }
  for (std::size_t s = 0; s < 64; ++s) sequences[s].blocks = tables[s].data();
  const AttentionWork work = plan_attention_work(sequences, {2, 2, 128, 0, 132});
  const PlanHeader header = header_of(work);
  std::int32_t anchor_items = 0;
  for (const PlannedItem& item : array_at<PlannedItem>(work, header.items_at, header.items)) {
    anchor_items += item.context == 0 ? 1 : 0;
  }
  EXPECT_EQ(anchor_items, 16);
}

}  // namespace
}  // namespace fieldprint::backend::cuda
