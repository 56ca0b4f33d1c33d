#include "core/anchor_mass.h"

#include <gtest/gtest.h>

namespace fieldprint::core {
namespace {

TEST(AnchorMass, IsTheMeanOfEveryLayer) {
  std::vector<double> sums;
  EXPECT_TRUE(mean_anchor_mass(sums, 1).empty());
  add_anchor_mass(sums, std::vector<float>{0.25F, 1.0F, 0.0F});
  add_anchor_mass(sums, std::vector<float>{0.75F, 1.0F, 0.5F});
  EXPECT_EQ(mean_anchor_mass(sums, 2), (std::vector<float>{0.5F, 1.0F, 0.25F}));
}

TEST(AnchorMass, IsRoundedOnceAtTheEnd) {
  std::vector<double> sums;
  const int tokens = 1 << 12;
  add_anchor_mass(sums, std::vector<float>{1.0F});
  // In binary32 every one of these would be lost beside the first.
  for (int i = 1; i < tokens; ++i) add_anchor_mass(sums, std::vector<float>{0x1p-25F});
  EXPECT_EQ(mean_anchor_mass(sums, 1), (std::vector<float>{1.0F + 4095 * 0x1p-25F}));
}

}  // namespace
}  // namespace fieldprint::core
