#pragma once

#include <cstdint>

namespace fieldprint {

<<<<<<< HEAD
/// How a token is chosen from its logits. Order: repetition penalty, temperature, top-k, top-p, min-p.
struct SamplingSettings {
  float temperature = 0;         ///< 0 = greedy
  std::int32_t top_k = 0;        ///< 0 = off
  float top_p = 1;               ///< (0, 1]
  float min_p = 0;               ///< [0, 1], relative to the most likely token
  float repetition_penalty = 1;  ///< > 0; applied to every token of the history
  std::uint64_t seed = 0;
=======
/// How the next token is chosen from the logits. The same settings, seed and history give the same token.
struct SamplingSettings {
  float temperature = 0;         ///< ≥ 0; 0 = greedy
  std::int32_t top_k = 0;        ///< ≥ 0; 0 = off
  float top_p = 1;               ///< (0, 1]; 1 = off
  float min_p = 0;               ///< [0, 1); 0 = off
  float repetition_penalty = 1;  ///< > 0; 1 = off
  std::uint64_t seed = 0;        ///< key of the counter-based random numbers
>>>>>>> led

  bool operator==(const SamplingSettings&) const = default;
};

}  // namespace fieldprint
