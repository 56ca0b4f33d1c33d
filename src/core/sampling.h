#pragma once

#include <cstdint>

namespace fieldprint {

/// How the next token is chosen from the logits. The same settings, seed and history give the same token.
struct SamplingSettings {
  float temperature = 0;         ///< ≥ 0; 0 = greedy
  std::int32_t top_k = 0;        ///< ≥ 0; 0 = off
  float top_p = 1;               ///< (0, 1]; 1 = off
  float min_p = 0;               ///< [0, 1]; 0 = off
  float repetition_penalty = 1;  ///< > 0; 1 = off
  std::uint64_t seed = 0;        ///< key of the counter-based random numbers

  bool operator==(const SamplingSettings&) const = default;
};

}  // namespace fieldprint
