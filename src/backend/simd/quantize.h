#pragma once

#include <cstdint>

#include "exact/format.h"

/// What the vectorised quantisers and weights share: steps of exact/arith.h that are the same for vectors of
/// any width. Internal linkage, because code compiled here may not be linked into baseline code.
namespace fieldprint::backend::simd {
namespace {

/// exact::query_step.
inline std::int32_t query_step(float amax) {
  const float levels = amax * exact::kQueryLevels;
  if (levels >= static_cast<float>(exact::kLargestStep)) return exact::kLargestStep;
  const std::int32_t step = static_cast<std::int32_t>(levels) + 1;
  return step < exact::kSmallestStep ? exact::kSmallestStep : step;
}

/// exact::value_slot.
inline std::int64_t value_slot(std::int64_t slot) {
  const std::int64_t t = slot % 32;
  return slot - t + 16 * (t >> 4) + 4 * ((t & 7) >> 1) + 2 * ((t >> 3) & 1) + (t & 1);
}

// Of attention_weight.
inline constexpr int kHalfBias = 112 << 23;  // from a half's exponent to a float's
inline constexpr int kMantissa = 0x007FFFFF;
inline constexpr int kOneBits = 0x3F800000;
inline constexpr int kBelowHalfUnit = 0x0FFF;  // of a half's last place, as a float's bits
inline constexpr int kHalfMask = ~0x1FFF;
inline constexpr float kEighthsMagic = 0x1.8p20F;  // floats around it are 1/8 apart

}  // namespace
}  // namespace fieldprint::backend::simd
