#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "core/sampling.h"
#include "exact/choice.h"

namespace fieldprint::sampler {

/// Access to one row of logits where the backend keeps them.
struct LogitRow {
  std::span<const float> logits;  ///< [vocab]
  /// round(2^30·exp2((logit − maximum)·scale)) for every token.
  std::function<std::span<const std::int32_t>(float scale)> probabilities;
  /// Puts other logits in the place of the row's, for `probabilities` to use.
  std::function<void(std::span<const float>)> replace;
};

/// The tokens of a history, for the repetition penalty.
class SeenTokens {
 public:
  explicit SeenTokens(std::int32_t vocab) : words_(static_cast<std::size_t>(exact::seen_words(vocab))) {}

  void add(std::int32_t token) { words_[static_cast<std::size_t>(token) / 32] |= 1U << (token % 32); }
  void add(std::span<const std::int32_t> tokens) {
    for (const std::int32_t token : tokens) add(token);
  }
  std::span<const std::uint32_t> words() const { return words_; }

 private:
  std::vector<std::uint32_t> words_;
};

/// The settings as the numbers that choose the token after a history of so many tokens. The settings are in
/// range (core/settings.h).
exact::TokenChoice choice_of(const SamplingSettings& settings, std::size_t history_tokens);

/// Chooses the token that follows: the definition of the backends' operation. The repetition penalty divides
/// the positive and multiplies the negative logits of every token in `seen`, which is read for nothing else
/// (Keskar et al. 2019, CTRL). Everything after the probabilities is integer arithmetic; ties go to the
/// smaller token id; −infinity is never chosen. exact::kNoToken when a logit is NaN or the largest is
/// infinite.
std::int32_t choose(const LogitRow& row, const exact::TokenChoice& choice,
                    std::span<const std::uint32_t> seen);

/// Why there is no token.
Error not_finite();

struct TokenLogprob {
  std::int32_t token;
  float logprob;  ///< natural logarithm, at temperature 1
};

struct Pick {
  std::int32_t token = 0;
  float logprob = 0;                      ///< of `token`; 0 unless logprobs were asked for
  std::vector<TokenLogprob> most_likely;  ///< the asked number, the most likely first
};

/// The same from settings and history, with logprobs: none if `logprobs` < 0, else for so many alternatives.
/// not_finite() where there is no token.
Result<Pick> pick(const LogitRow& row, const SamplingSettings& settings,
                  std::span<const std::int32_t> history, std::int32_t logprobs);

}  // namespace fieldprint::sampler
