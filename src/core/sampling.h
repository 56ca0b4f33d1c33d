#pragma once

#include <cstdint>

namespace fieldprint {

/// How the next token is chosen from the logits. The same settings, seed and history give the same token.
/// core/settings.h says whether they are in range.
struct SamplingSettings {
  float temperature = 0;         ///< 0 = greedy, else within bounds::kMinTemperature … kMaxTemperature
  std::int32_t top_k = 0;        ///< 0 … bounds::kMaxTopK; 0 = off
  float top_p = 1;               ///< (0, 1]; 1 = off
  float min_p = 0;               ///< [0, 1]; 0 = off
  float repetition_penalty = 1;  ///< within bounds::kMin… kMaxRepetitionPenalty; 1 = off
  std::uint64_t seed = 0;        ///< key of the counter-based random numbers

  bool operator==(const SamplingSettings&) const = default;
};

}  // namespace fieldprint
