#include "sampler/philox.h"

#include <gtest/gtest.h>

namespace fieldprint::sampler {
namespace {

using Block = std::array<std::uint32_t, 4>;

/// Random123's known answers (kat_vectors, philox4x32 10).
TEST(Philox, GivesTheKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, TakesSeedAsKeyAndPositionAsCounterLowWordsFirst) {
  EXPECT_EQ(philox(0, 0), 0xe169c58d6627e8d5U);
  const Block block = philox4x32({0x55667788, 0x11223344, 0, 0}, {0xddeeff00, 0x99aabbcc});
  EXPECT_EQ(philox(0x99aabbccddeeff00U, 0x1122334455667788U), block[0] | static_cast<std::uint64_t>(block[1])
                                                                             << 32);
}

}  // namespace
}  // namespace fieldprint::sampler
