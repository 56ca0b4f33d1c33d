#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "exact/arith.h"

/// Histories of chosen scores, and what the contract's words make of them, for the tests of attention.
namespace fieldprint::backend::testing {

/// Heads of 16 whose keys are chosen by the score they shall have with the one query of all rows.
inline constexpr std::size_t kSmallDim = 16;
inline const std::vector<std::int8_t> kScoreQuery = {127, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0};

inline std::vector<std::int8_t> key_of_score(std::int32_t score) {
  std::vector<std::int8_t> key(kSmallDim);
  key[0] = static_cast<std::int8_t>(score / 127);
  key[1] = static_cast<std::int8_t>(score % 127);
  return key;
}

inline std::vector<std::int8_t> random_value(std::mt19937_64& random) {
  std::vector<std::int8_t> value(kSmallDim);
  for (std::int8_t& x : value) x = static_cast<std::int8_t>(static_cast<std::int32_t>(random() % 255) - 127);
  return value;
}

/// A softmax state as the contract's words have it, and how often it was raised or only added to.
struct Oracle {
  float reference = -std::numeric_limits<float>::infinity();
  float denominator = 0.0F;
  std::vector<float> output = std::vector<float>(kSmallDim);
  int raised = 0;
  int added_above = 0;

  void fold(const Oracle& next) {
    if (std::isinf(reference)) {
      reference = next.reference;
      denominator = next.denominator;
      output = next.output;
      return;
    }
    const bool raise = next.reference > reference + exact::kFoldHeadroom;
    raised += raise ? 1 : 0;
    added_above += !raise && next.reference > reference ? 1 : 0;
    const float factor = exact::exp2(raise ? reference - next.reference : next.reference - reference);
    const auto join = [&](float mine, float other) {
      return raise ? std::fma(mine, factor, other) : std::fma(other, factor, mine);
    };
    denominator = join(denominator, next.denominator);
    for (std::size_t d = 0; d < kSmallDim; ++d) output[d] = join(output[d], next.output[d]);
    if (raise) reference = next.reference;
  }
};

inline Oracle tile_state(const std::vector<std::int32_t>& scores,
                         const std::vector<std::vector<std::int8_t>>& values, std::int32_t step) {
  const std::int32_t maximum = *std::max_element(scores.begin(), scores.end());
  Oracle tile;
  tile.reference = static_cast<float>(maximum) * (static_cast<float>(step) * 0x1p-22F);
  for (std::size_t j = 0; j < scores.size(); ++j) {
    const auto weight = static_cast<float>(exact::attention_weight(scores[j] - maximum, step));
    tile.denominator += weight;
    for (std::size_t d = 0; d < kSmallDim; ++d) tile.output[d] += weight * static_cast<float>(values[j][d]);
  }
  return tile;
}

}  // namespace fieldprint::backend::testing
