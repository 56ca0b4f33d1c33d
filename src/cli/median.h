#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>
#include <vector>

namespace fieldprint::cli {

/// The middle value, of an even number the upper of the two; there is at least one.
inline double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

/// Bounds between which the median of what was sampled lies with a probability of at least 95 %, whatever its
/// distribution: two of the values, chosen by the binomial distribution with p = 1/2 (David and Nagaraja,
/// Order Statistics, 7.1). With fewer than 6 values nothing has that probability, and the bounds are the
/// extremes.
inline std::pair<double, double> median_interval(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  double term = std::pow(0.5, static_cast<double>(n));  // of k values below the median
  double below = term;
  std::size_t k = 0;
  while (k + 1 < n - k - 1) {
    term *= static_cast<double>(n - k) / static_cast<double>(k + 1);
    if (below + term > 0.025) break;
    below += term;
    ++k;
  }
  return {values[k], values[n - 1 - k]};
}

}  // namespace fieldprint::cli
