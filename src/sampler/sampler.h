#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "core/sampling.h"

namespace fieldprint::sampler {

/// Access to one row of logits where the backend keeps them.
struct LogitRow {
  std::span<const float> logits;  ///< [vocab]
  /// round(2^30·exp2((logit − maximum)·scale)) for every token.
  std::function<std::span<const std::int32_t>(float scale)> probabilities;
  /// Puts other logits in the place of the row's, for `probabilities` to use.
  std::function<void(std::span<const float>)> replace;
};

struct TokenLogprob {
  std::int32_t token;
  float logprob;  ///< natural logarithm, at temperature 1
};

struct Pick {
  std::int32_t token = 0;
  float logprob = 0;                      ///< of `token`; 0 unless logprobs were asked for
  std::vector<TokenLogprob> most_likely;  ///< the asked number, the most likely first
};

/// Chooses the token that follows `history`. The repetition penalty divides the positive and multiplies the
/// negative logits of every token of the history, once each (Keskar et al. 2019, CTRL). Everything after the
/// probabilities is integer arithmetic; ties go to the smaller token id. `logprobs` < 0: none are computed,
/// else for so many alternatives. The settings are in
/// range (core/settings.h). An error when a logit is NaN or the
/// largest is infinite; −infinity is never chosen.
Result<Pick> pick(const LogitRow& row, const SamplingSettings& settings,
                  std::span<const std::int32_t> history, std::int32_t logprobs);

}  // namespace fieldprint::sampler
