#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"
#include "eval/float_model.h"
#include "weights/model_file.h"

namespace fieldprint::eval {

struct PerplexityOptions {
  std::int32_t context = 2048;  ///< tokens of a window, BOS included; 2 to bounds::kMaxStepTokens
  std::int64_t tokens = 0;      ///< tokens of the text to use, from its start; 0 means all
};

/// One window: what the models read, and the token that each thought most likely to follow.
struct PerplexityWindow {
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> canonical_top1;  ///< by position, as many as tokens
};

struct PerplexityReport {
  double canonical = 0;       ///< perplexity of the canonical model
  double reference = 0;       ///< of the float32 model
  double ratio = 0;           ///< canonical / reference
  std::int64_t tokens = 0;    ///< that were predicted and counted
  double top1_agreement = 0;  ///< share of them at which both models rank the same token first
  double divergence = 0;      ///< mean Kullback-Leibler divergence of canonical from reference, nats a token
  std::vector<PerplexityWindow> windows;
};

/// Called with windows done and windows in all.
using PerplexityProgress = std::function<void(std::int64_t, std::int64_t)>;

/// Perplexity of the canonical model and of float32 on the same tokens. The text is tokenised as a whole and
/// cut into windows of `context` tokens that do not overlap; a window begins with BOS where the vocabulary
/// says that sequences do. Every token of a window after its first is predicted from those before it and
/// counts; a last window of one token is left out. The perplexity is exp of the mean negative log-likelihood.
/// `file` and `reference` are the same model. A text of fewer than two tokens, or a context that the model
/// does not have, is the caller's error.
Result<PerplexityReport> perplexity(const weights::ModelFile& file, backend::Backend& backend,
                                    FloatModel& reference, std::string_view text,
                                    const PerplexityOptions& options, const PerplexityProgress& progress);

/// How two rows of logits predict `next`.
struct RowComparison {
  double canonical_loss;  ///< −ln p(next)
  double reference_loss;
  double divergence;  ///< Σ q·ln(q/p), q of the reference, p of the canonical row
  std::int32_t canonical_top1;
  std::int32_t reference_top1;
};
RowComparison compare_rows(std::span<const float> canonical, std::span<const float> reference,
                           std::int32_t next);

/// One line a position, "token top1", and an empty line after each window: for comparison with another
/// engine.
std::string top1_lines(const PerplexityReport& report);

}  // namespace fieldprint::eval
