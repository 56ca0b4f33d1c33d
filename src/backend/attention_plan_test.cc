#include "backend/attention_plan.h"

#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <random>
#include <tuple>

namespace fieldprint::backend {
namespace {

/// Sequences with block tables of their own.
class Batch {
 public:
  /// `blocks` begins with the sink's and the anchors' blocks.
  void add(std::int32_t queries, std::int32_t anchor_tokens, std::vector<std::int32_t> blocks) {
    tables_.push_back(std::move(blocks));
    sequences_.push_back({first_query_, queries, anchor_tokens + 1, anchor_tokens, nullptr, 0.0F,
                          std::numeric_limits<float>::infinity()});
    first_query_ += queries;
  }
  std::vector<AttentionSequence> sequences() {
    for (std::size_t i = 0; i < tables_.size(); ++i) sequences_[i].blocks = tables_[i].data();
    return sequences_;
  }

 private:
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<AttentionSequence> sequences_;
  std::int32_t first_query_ = 0;
};

/// How often each (row of q, KV head) is computed.
using Counts = std::map<std::pair<std::int32_t, std::int32_t>, int>;

Counts preface_counts(const AttentionPlan& plan, std::span<const AttentionSequence> sequences) {
  Counts counts;
  for (const PrefaceItem& item : plan.preface) {
    std::int32_t counted = 0;
    for (std::int32_t s = 0; s < item.sequences; ++s) {
      const AttentionSequence& sequence = sequences[static_cast<std::size_t>(item.first_sequence + s)];
      for (std::int32_t q = 0; q < sequence.queries; ++q) {
        if (counted + q < item.query_begin || counted + q >= item.query_end) continue;
        ++counts[{sequence.first_query + q, item.kv_head}];
      }
      counted += sequence.queries;
    }
    EXPECT_LE(item.query_end, counted);
  }
  return counts;
}

Counts context_counts(const AttentionPlan& plan, std::span<const AttentionSequence> sequences) {
  Counts counts;
  for (const ContextItem& item : plan.context) {
    const AttentionSequence& sequence = sequences[static_cast<std::size_t>(item.sequence)];
    EXPECT_LE(item.query_end, sequence.queries);
    for (std::int32_t q = item.query_begin; q < item.query_end; ++q) {
      ++counts[{sequence.first_query + q, item.kv_head}];
    }
  }
  return counts;
}

Counts once_each(std::span<const AttentionSequence> sequences, std::int32_t kv_heads) {
  Counts counts;
  for (const AttentionSequence& sequence : sequences) {
    for (std::int32_t q = 0; q < sequence.queries; ++q) {
      for (std::int32_t head = 0; head < kv_heads; ++head) counts[{sequence.first_query + q, head}] = 1;
    }
  }
  return counts;
}

TEST(AttentionPlan, ComputesEveryQueryOfEveryHeadExactlyOnce) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    Batch batch;
    const std::uint64_t count = 1 + random() % 8;
    for (std::uint64_t s = 0; s < count; ++s) {
      const auto anchors = static_cast<std::int32_t>(random() % 3 * 64);
      std::vector<std::int32_t> blocks;
      for (std::int32_t b = 0; b < 1 + anchors / 64; ++b) {
        blocks.push_back(static_cast<std::int32_t>(random() % 2) * 100 + b);
      }
      batch.add(static_cast<std::int32_t>(1 + random() % (random() % 4 == 0 ? 400 : 3)), anchors, blocks);
    }
    const auto kv_heads = static_cast<std::int32_t>(1 + random() % 4);
    const auto heads_each = static_cast<std::int32_t>(1 + random() % 80);
    const std::vector<AttentionSequence> sequences = batch.sequences();
    const AttentionPlan plan = plan_attention(sequences, kv_heads * heads_each, kv_heads);
    EXPECT_EQ(preface_counts(plan, sequences), once_each(sequences, kv_heads));
    EXPECT_EQ(context_counts(plan, sequences), once_each(sequences, kv_heads));
  }
}

TEST(AttentionPlan, NeighboursWithTheSamePrefaceAreOneGroup) {
  Batch batch;
  batch.add(1, 100, {5, 6, 7, 20});
  batch.add(2, 100, {5, 6, 7, 30});
  batch.add(1, 100, {5, 6, 7, 40});
  const std::vector<AttentionSequence> sequences = batch.sequences();
  const AttentionPlan plan = plan_attention(sequences, 6, 2);
  ASSERT_EQ(plan.preface.size(), 2U);
  for (std::int32_t head = 0; head < 2; ++head) {
    const PrefaceItem& item = plan.preface[static_cast<std::size_t>(head)];
    EXPECT_EQ(item.first_sequence, 0);
    EXPECT_EQ(item.sequences, 3);
    EXPECT_EQ(item.kv_head, head);
    EXPECT_EQ(item.query_begin, 0);
    EXPECT_EQ(item.query_end, 4);
  }
}

TEST(AttentionPlan, AnyOtherPrefaceBlockOrLengthSeparates) {
  const std::vector<std::pair<std::int32_t, std::vector<std::int32_t>>> others = {
      {100, {9, 6, 7}}, {100, {5, 6, 9}}, {99, {5, 6, 7}}, {64, {5, 6}}, {0, {5}}};
  for (const auto& [anchors, blocks] : others) {
    Batch batch;
    batch.add(1, 100, {5, 6, 7});
    batch.add(1, anchors, blocks);
    const std::vector<AttentionSequence> sequences = batch.sequences();
    EXPECT_EQ(plan_attention(sequences, 4, 1).preface.size(), 2U) << anchors;
  }
}

TEST(AttentionPlan, ATableMayEndWithTheLastTokenWithinTheAnchors) {
  // Prefills of 100 anchors that have come to positions 40, 64, 65 and 40: tables of exactly so many blocks.
  const std::vector<std::vector<std::int32_t>> tables = {{5, 6}, {5, 6}, {5, 6, 7}, {5, 6}};
  const std::vector<std::int32_t> last = {40, 64, 65, 40};
  std::vector<AttentionSequence> sequences;
  for (std::size_t i = 0; i < tables.size(); ++i) {
    sequences.push_back({static_cast<std::int32_t>(i), 1, last[i], 100, tables[i].data(), 0.0F,
                         std::numeric_limits<float>::infinity()});
  }
  EXPECT_EQ(plan_attention(sequences, 4, 1).preface.size(), 1U);
  EXPECT_EQ(preface_counts(plan_attention(sequences, 4, 1), sequences), once_each(sequences, 1));
}

TEST(AttentionPlan, WhatOneSequenceSeesAlikeOthersMaySeeDifferently) {
  const std::vector<std::vector<std::int32_t>> tables = {{5, 6}, {5, 6, 7}, {5, 6, 8}};
  std::vector<AttentionSequence> sequences;
  for (std::size_t i = 0; i < tables.size(); ++i) {
    sequences.push_back({static_cast<std::int32_t>(i), 1, i == 0 ? 40 : 90, 100, tables[i].data(), 0.0F,
                         std::numeric_limits<float>::infinity()});
  }
  const AttentionPlan plan = plan_attention(sequences, 4, 1);
  ASSERT_EQ(plan.preface.size(), 2U);
  EXPECT_EQ(plan.preface[0].sequences, 2);
  EXPECT_EQ(plan.preface[1].first_sequence, 2);
}

TEST(AttentionPlan, LongPrefillsAreCut) {
  Batch batch;
  batch.add(1000, 0, {1});
  const std::vector<AttentionSequence> sequences = batch.sequences();
  const AttentionPlan plan = plan_attention(sequences, 4, 1);
  EXPECT_GE(plan.context.size(), 8U);
  EXPECT_GE(plan.preface.size(), 8U);
  // Last queries first: they see the most.
  EXPECT_GT(plan.context.front().query_begin, plan.context.back().query_begin);
}

TEST(AttentionPlan, NoSequencesMakeNoWork) {
  const AttentionPlan plan = plan_attention({}, 4, 4);
  EXPECT_TRUE(plan.preface.empty());
  EXPECT_TRUE(plan.context.empty());
}

}  // namespace
}  // namespace fieldprint::backend
