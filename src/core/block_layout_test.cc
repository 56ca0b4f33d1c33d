#include "core/block_layout.h"

#include <gtest/gtest.h>

#include <vector>

namespace fieldprint::core {
namespace {

/// The layout by its definition: tokens laid one by one, each segment in blocks of its own.
struct NaiveLayout {
  std::vector<TokenPlace> places;
  std::vector<std::int64_t> blocks_after;  ///< blocks in use after each token

  NaiveLayout(std::int64_t anchors, std::int64_t tokens) {
    std::int64_t block = -1;
    std::int32_t slot = 0;
    for (std::int64_t position = 0; position < tokens; ++position) {
      const bool starts_segment = position == 0 || position == 1 || position == 1 + anchors;
      if (starts_segment || slot == 63) {
        ++block;
        slot = 0;
      } else {
        ++slot;
      }
      places.push_back({block, slot});
      blocks_after.push_back(block + 1);
    }
  }
};

TEST(BlockLayout, AgreesWithTokensLaidOneByOne) {
  for (const std::int64_t anchors : {0, 1, 5, 63, 64, 65, 127, 128, 129, 200}) {
    const BlockLayout layout{anchors};
    const std::int64_t tokens = 500;
    const NaiveLayout naive(anchors, tokens);
    EXPECT_EQ(layout.blocks_for(0), 0);
    EXPECT_EQ(layout.full_blocks(0), 0);
    for (std::int64_t position = 0; position < tokens; ++position) {
      const auto i = static_cast<std::size_t>(position);
      const TokenPlace place = layout.place(position);
      ASSERT_EQ(place.block, naive.places[i].block) << anchors << " " << position;
      ASSERT_EQ(place.slot, naive.places[i].slot) << anchors << " " << position;
      ASSERT_EQ(layout.blocks_for(position + 1), naive.blocks_after[i]) << anchors << " " << position;
      const bool last_of_block = position + 1 == tokens || naive.places[i + 1].slot == 0;
      if (position + 1 < tokens) {
        ASSERT_EQ(layout.full_blocks(position + 1), naive.blocks_after[i] - (last_of_block ? 0 : 1));
      }
      ASSERT_GE(position, layout.block_begin(place.block));
      ASSERT_LT(position, layout.block_end(place.block));
      const Segment segment = position == 0         ? Segment::kSink
                              : position <= anchors ? Segment::kAnchors
                                                    : Segment::kContext;
      ASSERT_EQ(layout.segment_of_block(place.block), segment);
    }
  }
}

TEST(BlockLayout, PartlyFilledAnchorBlockDoesNotShiftTheContext) {
  const BlockLayout layout{70};
  EXPECT_EQ(layout.preface_blocks(), 3);
  EXPECT_EQ(layout.block_end(2), 71);
  EXPECT_EQ(layout.place(71).block, 3);
  EXPECT_EQ(layout.place(71).slot, 0);
}

}  // namespace
}  // namespace fieldprint::core
