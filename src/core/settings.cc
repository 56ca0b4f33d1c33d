#include "core/settings.h"

#include <fmt/format.h>

#include <utility>

#include "base/bounds.h"
#include "base/utf8.h"

namespace fieldprint::core {
namespace {

using Found = std::optional<SettingError>;

template <class T>
SettingError outside(std::string field, const char* name, T value, std::string allowed) {
  return {std::move(field), fmt::format("{} is {}", name, value), "must be " + std::move(allowed)};
}

// NaN fails every comparison, and so every range.

Found check(const AnchorBounds& anchors) {
  if (!(anchors.ceiling >= 0 && anchors.ceiling <= 1)) {
    return outside("anchor_bounds.ceiling", "the anchor ceiling", anchors.ceiling, "from 0 to 1");
  }
  if (!(anchors.floor >= 0 && anchors.floor < 1 && anchors.floor <= anchors.ceiling)) {
    return outside("anchor_bounds.floor", "the anchor floor", anchors.floor,
                   fmt::format("at least 0, below 1 and not above the ceiling of {}", anchors.ceiling));
  }
  return {};
}

Found check(const SamplingSettings& s) {
  using bounds::kMaxRepetitionPenalty;
  using bounds::kMaxTemperature;
  using bounds::kMinRepetitionPenalty;
  using bounds::kMinTemperature;
  if (s.temperature != 0 && !(s.temperature >= kMinTemperature && s.temperature <= kMaxTemperature)) {
    return outside("sampling.temperature", "temperature", s.temperature,
                   fmt::format("0 (greedy) or from {} to {}", kMinTemperature, kMaxTemperature));
  }
  if (s.top_k < 0 || s.top_k > bounds::kMaxTopK) {
    return outside("sampling.top_k", "top-k", s.top_k, fmt::format("from 0 (off) to {}", bounds::kMaxTopK));
  }
  if (!(s.top_p > 0 && s.top_p <= 1)) {
    return outside("sampling.top_p", "top-p", s.top_p, "above 0 and at most 1");
  }
  if (!(s.min_p >= 0 && s.min_p <= 1)) return outside("sampling.min_p", "min-p", s.min_p, "from 0 to 1");
  if (!(s.repetition_penalty >= kMinRepetitionPenalty && s.repetition_penalty <= kMaxRepetitionPenalty)) {
    return outside("sampling.repetition_penalty", "repetition penalty", s.repetition_penalty,
                   fmt::format("from {} to {}", kMinRepetitionPenalty, kMaxRepetitionPenalty));
  }
  return {};
}

Found check(std::span<const std::string> stop) {
  if (std::cmp_greater(stop.size(), bounds::kMaxStopStrings)) {
    return SettingError{"stop", fmt::format("there are {} stop strings", stop.size()),
                        fmt::format("at most {} stop strings are allowed", bounds::kMaxStopStrings)};
  }
  for (std::size_t i = 0; i < stop.size(); ++i) {
    const auto refuse = [i](std::string_view found) {
      return SettingError{fmt::format("stop[{}]", i), fmt::format("stop string {} {}", i + 1, found),
                          fmt::format("must be 1 to {} bytes of UTF-8", bounds::kMaxStopStringBytes)};
    };
    if (stop[i].empty()) return refuse("is empty");
    if (std::cmp_greater(stop[i].size(), bounds::kMaxStopStringBytes)) {
      return refuse(fmt::format("has {} bytes", stop[i].size()));
    }
    if (!valid_utf8(stop[i])) return refuse("is not UTF-8");
  }
  return {};
}

}  // namespace

Found find_invalid(const AnchorBounds& anchor_bounds, const SamplingSettings& sampling,
                   std::int32_t max_tokens, std::span<const std::string> stop) {
  if (Found found = check(anchor_bounds)) return found;
  if (Found found = check(sampling)) return found;
  if (max_tokens < 1 || max_tokens > bounds::kMaxContext) {
    return outside("max_tokens", "the number of tokens to generate", max_tokens,
                   fmt::format("from 1 to {}", bounds::kMaxContext));
  }
  return check(stop);
}

Found find_invalid(std::span<const Input> inputs) {
  if (std::cmp_greater(inputs.size(), bounds::kMaxInputs)) {
    return SettingError{"inputs", fmt::format("there are {} inputs", inputs.size()),
                        fmt::format("at most {} inputs are allowed", bounds::kMaxInputs)};
  }
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].kind == "tool_result" || inputs[i].kind == "memory") continue;
    return outside(fmt::format("inputs[{}].kind", i), "the kind of an input", inputs[i].kind,
                   "tool_result or memory");
  }
  return {};
}

Found find_invalid(const Request& request) {
  if (Found found = find_invalid(request.anchor_bounds, request.sampling, request.max_tokens, request.stop))
    return found;
  return find_invalid(request.inputs);
}

}  // namespace fieldprint::core
