#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "core/request.h"

/// The one definition of the settings that can be computed, recorded and verified. What answers, what records
/// and what verifies ask here, so that no answer is given that its receipt could not state.
namespace fieldprint::core {

struct SettingError {
  std::string field;    ///< as a receipt names it: "sampling.top_p", "stop[1]"
  std::string found;    ///< as its user knows it: "top-p is 1.5"
  std::string problem;  ///< "must be above 0 and at most 1"

  std::string message() const { return found + ", but " + problem; }
};

/// The first setting out of its range, or nothing. The ranges:
///   anchor bounds       0 ≤ floor < 1, floor ≤ ceiling ≤ 1; a ceiling of 0 leaves the anchors unseen
///   temperature         0 (greedy), or bounds::kMinTemperature … kMaxTemperature
///   top-k               0 (off) … bounds::kMaxTopK
///   top-p, min-p        (0, 1] and [0, 1]
///   repetition penalty  bounds::kMinRepetitionPenalty … kMaxRepetitionPenalty
///   max_tokens          1 … bounds::kMaxContext
///   stop                at most bounds::kMaxStopStrings, each 1 … kMaxStopStringBytes bytes of UTF-8
std::optional<SettingError> find_invalid(const AnchorBounds& anchor_bounds, const SamplingSettings& sampling,
                                         std::int32_t max_tokens, std::span<const std::string> stop);

/// The first input of a kind unknown to receipts, or that there are more than bounds::kMaxInputs, or nothing.
std::optional<SettingError> find_invalid(std::span<const Input> inputs);

/// Both for a request; its prompt and its logprobs are not looked at.
std::optional<SettingError> find_invalid(const Request& request);

}  // namespace fieldprint::core
