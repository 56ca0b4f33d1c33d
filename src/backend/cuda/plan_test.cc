#include "backend/cuda/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/bounds.h"
#include "exact/format.h"

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

std::vector<PlannedQuery> queries_of(const AttentionWork& work) {
  return array_at<PlannedQuery>(work, sizeof(PlanHeader), header_of(work).queries);
}
std::vector<PlannedItem> items_of(const AttentionWork& work) {
  return array_at<PlannedItem>(work, work.items_at, work.items);
}

/// The items of the row tasks, each of which must be there once for every KV head.
std::vector<PlannedItem> row_items_of(const AttentionWork& work, std::int32_t kv_heads) {
  std::vector<PlannedItem> items;
  std::map<std::pair<std::int32_t, std::int32_t>, std::set<std::int32_t>> heads;
  for (const PlannedTask& task :
       array_at<PlannedTask>(work, header_of(work).row_tasks_at, header_of(work).row_tasks)) {
    std::set<std::int32_t>& mine = heads[{task.item.block + task.item.first_tile, task.item.first_query}];
    if (mine.empty()) items.push_back(task.item);
    EXPECT_TRUE(mine.insert(task.kv_head).second && task.kv_head < kv_heads);
  }
  for (const auto& [item, mine] : heads) EXPECT_EQ(std::ssize(mine), kv_heads);
  return items;
}

std::int32_t pages_of(std::int32_t tokens) { return (tokens + 63) / 64; }

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
    for (std::int32_t b = 0; b <= pages_of(sequence.anchor_tokens); ++b) {
      table.push_back(shares ? batch.tables.back()[static_cast<std::size_t>(b)] : next_block++);
    }
    const std::int32_t seen = sequence.first_position + sequence.queries - 1 - sequence.anchor_tokens;
    for (std::int32_t b = 0; b < pages_of(std::max(seen, 0)); ++b) table.push_back(next_block++);
    batch.tables.push_back(table);
    batch.sequences.push_back(sequence);
  }
  for (std::size_t s = 0; s < batch.tables.size(); ++s) batch.sequences[s].blocks = batch.tables[s].data();
  return batch;
}

/// Of one segment of one query: the tiles that a part covers, and the blocks of their pages.
struct Part {
  std::int32_t first;
  std::int32_t end;
  std::vector<std::int32_t> blocks;
};

/// What a plan makes each query do, by state.
using Visits = std::map<std::int32_t, std::map<std::int32_t, Part>>;

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
        const std::int32_t state = item.state < 0 ? -1 : item.state + q;
        auto [part, is_new] =
            visits[item.first_query + q].try_emplace(state, Part{item.first_tile, item.end_tile, {}});
        EXPECT_TRUE(is_new) << "two items write one state";
        for (std::int32_t p = 2 * item.first_tile; p < 2 * item.end_tile; ++p) {
          part->second.blocks.push_back(blocks.at(static_cast<std::size_t>(item.block + p)));
        }
      }
    }
  };
  visit(items_of(work), kColumnRows);
  visit(row_items_of(work, shape.kv_heads), rows_of_item(shape.head_dim));
  return visits;
}

/// Pages of a segment that a query sees.
struct Pages {
  std::int32_t first;
  std::int32_t end;
};

/// Takes `count` parts from `state` on out of `mine`: together they must be the pages that are seen, in
/// order. Neighbours in an item may see more, never less.
std::vector<Part> take(std::map<std::int32_t, Part>& mine, std::int32_t state, std::int32_t stride,
                       std::int32_t count, Pages seen, const std::int32_t* blocks) {
  std::vector<Part> parts;
  for (std::int32_t p = 0; p < count; ++p) {
    const auto found = mine.find(state + p * stride);
    if (found == mine.end()) {
      ADD_FAILURE() << "no item makes state " << state + p * stride;
      return parts;
    }
    parts.push_back(found->second);
    mine.erase(found);
    if (p > 0) {
      EXPECT_EQ(parts[parts.size() - 2].end, parts.back().first);
    }
  }
  if (seen.first >= seen.end) return parts;
  if (parts.empty() || 2 * parts.front().first > seen.first || 2 * parts.back().end < seen.end) {
    ADD_FAILURE() << "pages are missing";
    return parts;
  }
  for (const Part& part : parts) {
    for (std::int32_t p = std::max(2 * part.first, seen.first); p < std::min(2 * part.end, seen.end); ++p) {
      EXPECT_EQ(part.blocks.at(static_cast<std::size_t>(p - 2 * part.first)), blocks[p]);
    }
  }
  return parts;
}

/// Parts end where chunks do, all but the first are chunks, and then come tiles.
void expect_chunks(const std::vector<Part>& parts, const PlannedQuery& query) {
  for (std::int32_t p = 0; p < static_cast<std::int32_t>(parts.size()); ++p) {
    const Part& part = parts[static_cast<std::size_t>(p)];
    if (query.whole_parts < 0) {
      EXPECT_EQ(parts.size(), 1U);
    } else if (p >= query.whole_parts) {
      EXPECT_EQ(part.end, part.first + 1);
      EXPECT_EQ((part.first - (p - query.whole_parts)) % exact::kChunkTiles, query.skipped_tiles);
    } else if (p > 0) {
      EXPECT_EQ(part.first / exact::kChunkTiles, (part.end - 1) / exact::kChunkTiles);
    }
    if (p > 0 && p <= query.whole_parts) {
      EXPECT_EQ(part.first % exact::kChunkTiles, 0);
    }
  }
}

/// That every query meets every tile that it sees once, in order.
void expect_complete(const Batch& batch, const PlanShape& shape, const AttentionWork& work) {
  const auto queries = queries_of(work);
  Visits visits = visits_of(work, shape);
  std::size_t slot = 0;
  for (std::size_t s = 0; s < batch.sequences.size(); ++s) {
    const AttentionSequence& sequence = batch.sequences[s];
    const std::int32_t anchors = sequence.anchor_tokens;
    for (std::int32_t q = 0; q < sequence.queries; ++q, ++slot) {
      const PlannedQuery& query = queries.at(slot);
      EXPECT_EQ(query.token, sequence.first_query + q);
      EXPECT_EQ(query.sequence, static_cast<std::int32_t>(s));
      EXPECT_EQ(query.position, sequence.first_position + q);
      auto& mine = visits[static_cast<std::int32_t>(slot)];
      const std::int32_t last = std::max(query.position - anchors, 0);
      const std::int32_t first = shape.window == 0 ? 0 : std::max(query.position - shape.window - anchors, 0);
      const bool is_result = query.whole_parts < 0;
      EXPECT_TRUE(!is_result || (anchors == 0 && query.state == -1));
      expect_chunks(
          take(mine, query.state, query.state_stride, is_result ? 1 : query.whole_parts + query.tile_parts,
               {first / 64, pages_of(last)}, sequence.blocks + 1 + pages_of(anchors)),
          query);
      take(mine, query.anchor_state, query.anchor_stride, query.anchor_parts,
           {0, pages_of(std::min(query.position, anchors))}, sequence.blocks + 1);
      EXPECT_TRUE(mine.empty()) << "an item that no query reads";
    }
  }
  EXPECT_EQ(slot, queries.size());
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
    expect_complete(batch, shape, plan_attention_work(batch.sequences, shape));
    if (HasFailure()) return;
  }
}

/// Prompts of `queries` tokens each that begin at `position`.
Batch prompts(std::int32_t count, std::int32_t queries, std::int32_t position, std::int32_t anchors) {
  Batch batch;
  for (std::int32_t s = 0; s < count; ++s) {
    std::vector<std::int32_t>& table = batch.tables.emplace_back();
    const std::int32_t blocks = 1 + pages_of(anchors) + pages_of(position + queries - 1 - anchors);
    for (std::int32_t b = 0; b < blocks; ++b) table.push_back(blocks * s + b);
    batch.sequences.push_back(
        {s * queries, queries, position, anchors, nullptr, 0.0F, std::numeric_limits<float>::infinity()});
  }
  for (std::size_t s = 0; s < batch.tables.size(); ++s) batch.sequences[s].blocks = batch.tables[s].data();
  return batch;
}

TEST(CudaPlan, StatesOfLongPromptsAreBounded) {
  const auto bytes = [](const Batch& batch, const PlanShape& shape) {
    const AttentionWork work = plan_attention_work(batch.sequences, shape);
    expect_complete(batch, shape, work);
    return workspace_bytes(shape, work.states);
  };
  // Chunks alone would be 2.2, 4.3, 2.2 and 8.6 GB.
  for (const PlanShape& shape : {PlanShape{32, 8, 128, 0, 132}, PlanShape{32, 8, 256, 0, 132},
                                 PlanShape{16, 1, 256, 0, 132}, PlanShape{64, 64, 256, 0, 132}}) {
    SCOPED_TRACE(std::to_string(shape.heads) + " heads of " + std::to_string(shape.head_dim));
    const Batch one = prompts(1, 512, 130'000, 0);
    EXPECT_LE(bytes(one, shape), bounds::kMaxAttentionStateBytes);
    if (HasFailure()) return;
  }
  // Where the bound leaves nothing but one part, as wide a model as there can be has its own.
  const PlanShape widest{256, 64, 256, 0, 132};
  EXPECT_EQ(bytes(prompts(2, 1024, 130'000, 0), widest), 0);
  const std::int64_t anchors = bytes(prompts(2, 1024, 60'000, 128), widest);
  EXPECT_GT(anchors, bounds::kMaxAttentionStateBytes);
  EXPECT_EQ(anchors, workspace_bytes(widest, 2 * 2 * 1024));
}

/// Tiles of each block's tasks.
std::vector<std::int64_t> loads_of(const AttentionWork& work, const PlanShape& shape) {
  const PlanHeader header = header_of(work);
  const std::int32_t blocks = std::min(work.row_tasks, shape.multiprocessors);
  const auto starts = array_at<std::int32_t>(work, header.row_starts_at, blocks + 1);
  const auto tasks = array_at<PlannedTask>(work, header.row_tasks_at, work.row_tasks);
  EXPECT_EQ(starts.front(), 0);
  EXPECT_EQ(starts.back(), work.row_tasks);
  std::vector<std::int64_t> loads;
  for (std::size_t block = 0; block < static_cast<std::size_t>(blocks); ++block) {
    EXPECT_LT(starts[block], starts[block + 1]);
    std::int64_t tiles = 0;
    for (std::int32_t i = starts[block]; i < starts[block + 1]; ++i) {
      const PlannedItem& item = tasks.at(static_cast<std::size_t>(i)).item;
      tiles += item.end_tile - item.first_tile;
    }
    loads.push_back(tiles);
  }
  return loads;
}

TEST(CudaPlan, PromptsKeepTheDeviceBusy) {
  struct Case {
    PlanShape shape;
    std::int32_t queries;
    std::int32_t position;
  };
  for (const Case& c : {Case{{32, 8, 128, 0, 132}, 512, 8192}, Case{{32, 8, 128, 0, 132}, 512, 65'536},
                        Case{{4, 1, 256, 0, 132}, 512, 32'768}, Case{{32, 8, 128, 0, 132}, 16'384, 0}}) {
    SCOPED_TRACE(std::to_string(c.queries) + " queries after " + std::to_string(c.position));
    const AttentionWork work = plan_attention_work(prompts(1, c.queries, c.position, 0).sequences, c.shape);
    const std::vector<std::int64_t> loads = loads_of(work, c.shape);
    ASSERT_EQ(loads.size(), 132U);
    const std::int64_t all = std::accumulate(loads.begin(), loads.end(), std::int64_t{0});
    EXPECT_LE(*std::max_element(loads.begin(), loads.end()), all / 132 * 6 / 5 + exact::kChunkTiles);
  }
  // Fewer tasks than multiprocessors, and none.
  const PlanShape shape{4, 1, 128, 0, 132};
  EXPECT_EQ(loads_of(plan_attention_work(prompts(1, 64, 0, 0).sequences, shape), shape).size(), 2U);
  EXPECT_TRUE(loads_of(plan_attention_work(prompts(1, 1, 100, 0).sequences, shape), shape).empty());
}

TEST(CudaPlan, StatesAreDistinct) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 50; ++round) {
    const Batch batch = random_batch(random);
    const PlanShape shape{8, 2, 128, 0, 132};
    const AttentionWork work = plan_attention_work(batch.sequences, shape);
    std::set<std::int32_t> states;
    for (const auto& [slot, mine] : visits_of(work, shape)) {
      for (const auto& [state, part] : mine) EXPECT_TRUE(state < 0 || states.insert(state).second);
    }
    EXPECT_TRUE(states.empty() || *states.rbegin() < work.states);
  }
}

TEST(CudaPlan, TilesThatTheStepWritesAreNotSettled) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 50; ++round) {
    const Batch batch = random_batch(random);
    const AttentionWork work = plan_attention_work(batch.sequences, {8, 2, 128, 0, 132});
    const auto queries = queries_of(work);
    for (const PlannedItem& item : items_of(work)) {
      const PlannedQuery& query = queries.at(static_cast<std::size_t>(item.first_query));
      const AttentionSequence& sequence = batch.sequences[static_cast<std::size_t>(query.sequence)];
      const std::int32_t start = 1 + (item.context != 0 ? sequence.anchor_tokens : 0);
      const bool complete = item.context == 0 && sequence.first_position > sequence.anchor_tokens;
      if (!complete || item.settled_tiles * 128 + start <= sequence.first_position) {
        EXPECT_LE(item.settled_tiles * 128 + start, std::max(sequence.first_position, start));
      }
    }
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
  EXPECT_EQ(work.row_tasks, 0);
  EXPECT_GT(work.items, 0);
}

TEST(CudaPlan, OnlyWhatIsLeftToFoldIsFolded) {
  std::vector<std::int32_t> table(600);
  for (std::size_t b = 0; b < table.size(); ++b) table[b] = static_cast<std::int32_t>(b);
  const auto sequence = [&](std::int32_t first_query, std::int32_t queries, std::int32_t anchors) {
    return AttentionSequence{
        first_query, queries, 5000, anchors, table.data(), 0.0F, std::numeric_limits<float>::infinity()};
  };
  const auto folded = [](const std::vector<AttentionSequence>& sequences) {
    return plan_attention_work(sequences, {32, 8, 128, 0, 4}).queries;
  };
  EXPECT_EQ(folded({sequence(0, 600, 0)}), 0);
  EXPECT_EQ(folded({sequence(0, 600, 100)}), 600);
  EXPECT_EQ(folded({sequence(0, 600, 0), sequence(600, 1, 0)}), 601);
  EXPECT_EQ(folded({sequence(0, 1, 0), sequence(1, 600, 0)}), 1);
  // An item must not last longer than everything else.
  const AttentionWork work = plan_attention_work(std::vector{sequence(0, 32, 0)}, {32, 8, 128, 0, 132});
  EXPECT_EQ(work.queries, 32);
}

/// Decode steps of `count` sequences at one position; with `anchors` their preface is the same.
std::vector<AttentionSequence> decode_step(std::int32_t count, std::int32_t position, std::int32_t anchors,
                                           std::vector<std::vector<std::int32_t>>& tables) {
  std::vector<AttentionSequence> sequences;
  for (std::int32_t s = 0; s < count; ++s) {
    std::vector<std::int32_t> table;
    for (std::int32_t b = 0; b <= pages_of(anchors); ++b) table.push_back(b);
    for (std::int32_t b = 0; b < pages_of(position - anchors); ++b) table.push_back(1000 * (s + 1) + b);
    tables.push_back(table);
    sequences.push_back({s, 1, position, anchors, nullptr, 0.0F, std::numeric_limits<float>::infinity()});
  }
  for (std::size_t s = 0; s < tables.size(); ++s) sequences[s].blocks = tables[s].data();
  return sequences;
}

struct Items {
  std::int64_t anchors = 0;
  std::int64_t tiles = 0;  ///< of the context, as are those below
  std::int64_t chunks = 0;
  std::int64_t longer = 0;
};
Items count_items(const AttentionWork& work) {
  Items items;
  for (const PlannedItem& item : items_of(work)) {
    const std::int32_t tiles = item.end_tile - item.first_tile;
    if (item.context == 0) {
      ++items.anchors;
    } else if (tiles == 1) {
      ++items.tiles;
    } else if (tiles <= exact::kChunkTiles) {
      ++items.chunks;
    } else {
      ++items.longer;
    }
  }
  return items;
}

/// Of the plan of a decode step, the items that the warps of a block share.
std::vector<PlannedItem> team_items_of(std::int32_t count, std::int32_t position, const PlanShape& shape) {
  std::vector<std::vector<std::int32_t>> tables;
  const AttentionWork work = plan_attention_work(decode_step(count, position, 0, tables), shape);
  std::vector<PlannedItem> items = items_of(work);
  items.resize(static_cast<std::size_t>(header_of(work).team_items));
  return items;
}

TEST(CudaPlan, WarpsShareRowsThatAreAboutAsManyAsBlocks) {
  const PlanShape shape{32, 8, 128, 0, 132};
  const std::vector<PlannedItem> team = team_items_of(16, 32768, shape);
  EXPECT_EQ(team.size(), 16U);
  for (const PlannedItem& item : team) EXPECT_GT(item.end_tile, 200);
  EXPECT_TRUE(team_items_of(1, 131072, shape).empty());
  EXPECT_TRUE(team_items_of(64, 8192, shape).empty());
  EXPECT_TRUE(team_items_of(256, 1024, shape).empty());
}

TEST(CudaPlan, QueriesThatShareAnchorsShareItems) {
  std::vector<std::vector<std::int32_t>> tables;
  const auto sequences = decode_step(64, 140, 128, tables);
  EXPECT_EQ(count_items(plan_attention_work(sequences, {8, 2, 128, 0, 132})).anchors, 16);
}

TEST(CudaPlan, AnchorsAreNotWaitedForLastOfAll) {
  std::vector<std::vector<std::int32_t>> tables;
  const AttentionWork work =
      plan_attention_work(decode_step(64, 8192 + 128, 128, tables), {32, 8, 128, 0, 132});
  const std::vector<PlannedItem> items = items_of(work);
  const auto is_anchors = [](const PlannedItem& item) { return item.context == 0; };
  const auto is_tile = [](const PlannedItem& item) {
    return item.context != 0 && item.end_tile == item.first_tile + 1;
  };
  const auto first_tile = std::find_if(items.begin(), items.end(), is_tile);
  ASSERT_NE(first_tile, items.end());
  EXPECT_EQ(std::count_if(items.begin(), first_tile, is_anchors), 16);
}

TEST(CudaPlan, PartsAreAsLargeAsTheDeviceCanBear) {
  const PlanShape shape{32, 8, 128, 0, 132};
  const auto items = [&](std::int32_t count, std::int32_t position) {
    std::vector<std::vector<std::int32_t>> tables;
    return count_items(plan_attention_work(decode_step(count, position, 0, tables), shape));
  };
  const Items many = items(64, 8192);
  EXPECT_EQ(many.longer, 64);
  EXPECT_GT(many.chunks, 64);
  const Items single = items(1, 8192);
  EXPECT_EQ(single.tiles, 64);
  EXPECT_EQ(single.chunks + single.longer, 0);
  const Items one_long = items(1, 131072);
  EXPECT_GT(one_long.chunks, 200);
  EXPECT_GT(one_long.tiles, 0);
  EXPECT_EQ(one_long.longer, 1);
}

}  // namespace
}  // namespace fieldprint::backend::cuda
