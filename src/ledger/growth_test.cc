#include "ledger/growth.h"

#include <gtest/gtest.h>

#include <map>

namespace fieldprint::ledger {
namespace {

Digest leaf(std::uint64_t i) {
  return leaf_hash(
      std::vector<std::uint8_t>{static_cast<std::uint8_t>(i), static_cast<std::uint8_t>(i >> 8)});
}

TEST(Growth, ProofsOfWhatWasAddedNeedNoOtherHashes) {
  CompactTree before;
  std::map<std::pair<int, std::uint64_t>, Digest> nodes;
  for (std::uint64_t size = 0; size < 140; ++size) {
    for (const std::uint64_t count : {1, 2, 3, 13, 64, 65}) {
      Growth growth(before);
      for (std::uint64_t i = 0; i < count; ++i) growth.append(leaf(size + i));
      EXPECT_EQ(growth.old_size(), size);
      EXPECT_EQ(growth.size(), size + count);
      for (std::uint64_t i = size; i < size + count; ++i) {
        const auto proof = growth.inclusion_proof(i);
        ASSERT_TRUE(verify_inclusion(leaf(i), i, size + count, proof, growth.root()).ok())
            << i << "/" << size + count;
      }
      for (int level = 0; level < 64; ++level) {
        ASSERT_EQ(growth.completed(level).size(), (growth.size() >> level) - (size >> level));
      }
    }
    before.append(leaf(size), [&](NodeId id, const Digest& hash) { nodes[{id.level, id.index}] = hash; });
    for (const auto& [id, hash] : nodes) {
      const auto peak = before.peak({id.first, id.second});
      const bool is_peak = before.size() >> id.first == id.second + 1 && (id.second & 1) == 0;
      ASSERT_EQ(peak.has_value(), is_peak);
      if (peak) {
        EXPECT_EQ(*peak, hash);
      }
    }
  }
}

}  // namespace
}  // namespace fieldprint::ledger
