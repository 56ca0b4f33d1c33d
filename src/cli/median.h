#pragma once

#include <algorithm>
#include <vector>

namespace fieldprint::cli {

/// The middle value, of an even number the upper of the two; there is at least one.
inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace fieldprint::cli
