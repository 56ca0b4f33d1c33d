#pragma once

#include <cstdint>

namespace fieldprint::exact {

/// What decides the token after a row beside its logits and its history: the settings as the numbers of
/// CANON.md, section 7, that are compared and multiplied there.
struct TokenChoice {
  float penalty;         ///< of the history's tokens; 1 = none
  float scale;           ///< log2(e)/temperature; 0 = the largest logit is taken
  std::int32_t top_k;    ///< candidates that stay; 0 = all
  std::int32_t least;    ///< smallest p that stays: ceil(min_p·2^30); 0 = all
  std::uint64_t top_p;   ///< ceil(top_p·2^32); 2^32 = all
  std::uint64_t random;  ///< R
};

/// In the place of a token: the row has a NaN, or its largest logit is infinite.
inline constexpr std::int32_t kNoToken = -1;

/// The tokens of a history as bits: bit i % 32 of word i / 32 is token i's.
constexpr std::int32_t seen_words(std::int32_t vocab) { return (vocab + 31) / 32; }

}  // namespace fieldprint::exact
