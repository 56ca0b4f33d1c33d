#include "cli/median.h"

#include <gtest/gtest.h>

#include <numeric>

namespace fieldprint::cli {
namespace {

std::vector<double> one_to(int n) {
  std::vector<double> values(static_cast<std::size_t>(n));
  std::iota(values.rbegin(), values.rend(), 1.0);
  return values;
}

TEST(Median, IsTheMiddleValueInAnyOrder) {
  EXPECT_EQ(median({7}), 7);
  EXPECT_EQ(median({9, 1, 5}), 5);
  EXPECT_EQ(median({4, 1, 3, 2}), 3);
}

// The ranks stand in tables of the sign test: the k-th lowest and highest of n values, two-sided 5 %.
TEST(MedianInterval, TakesTheRanksOfTheSignTest) {
  using Bounds = std::pair<double, double>;
  EXPECT_EQ(median_interval(one_to(1)), Bounds(1, 1));
  EXPECT_EQ(median_interval(one_to(5)), Bounds(1, 5));
  EXPECT_EQ(median_interval(one_to(6)), Bounds(1, 6));
  EXPECT_EQ(median_interval(one_to(9)), Bounds(2, 8));
  EXPECT_EQ(median_interval(one_to(20)), Bounds(6, 15));
  EXPECT_EQ(median_interval(one_to(41)), Bounds(14, 28));
}

}  // namespace
}  // namespace fieldprint::cli
