#pragma once

#include <cstdint>
#include <span>
#include <vector>

/// A layer's anchor mass: the mean over the output tokens, in order, of what each of them gave the anchors;
/// in binary64, rounded to float at the end (CANON §6).
namespace fieldprint::core {

/// Adds what one output token gave, [layers], to the sums, which begin empty.
void add_anchor_mass(std::vector<double>& sums, std::span<const float> by_layer);

/// [layers]; empty where nothing was added. `tokens` ≥ 1 were added.
std::vector<float> mean_anchor_mass(std::span<const double> sums, std::int64_t tokens);

}  // namespace fieldprint::core
