#include "core/anchor_mass.h"

#include "base/check.h"

namespace fieldprint::core {

void add_anchor_mass(std::vector<double>& sums, std::span<const float> by_layer) {
  if (sums.empty()) sums.resize(by_layer.size());
  CHECK(sums.size() == by_layer.size(), "{} layers after {}", by_layer.size(), sums.size());
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += static_cast<double>(by_layer[i]);
}

std::vector<float> mean_anchor_mass(std::span<const double> sums, std::int64_t tokens) {
  std::vector<float> means;
  for (const double sum : sums) means.push_back(static_cast<float>(sum / static_cast<double>(tokens)));
  return means;
}

}  // namespace fieldprint::core
