#include "eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "base/bounds.h"
#include "eval/window_runner.h"
#include "tokenizer/tokenizer.h"

namespace fieldprint::eval {
namespace {

// Of float32 logits asked for at once: enough to hide the cost of reading the output matrix.
constexpr std::int32_t kReferenceRows = 128;

/// The windows that the text is cut into.
std::vector<PerplexityWindow> cut(const tokenizer::Tokenizer& tokenizer, std::string_view text,
                                  const PerplexityOptions& options) {
  std::vector<std::int32_t> ids = tokenizer.encode(text);
  if (options.tokens > 0) ids.resize(std::min(ids.size(), static_cast<std::size_t>(options.tokens)));
  const bool begins = tokenizer.vocabulary().add_bos && tokenizer.bos();
  const std::size_t step = static_cast<std::size_t>(options.context) - (begins ? 1 : 0);
  std::vector<PerplexityWindow> windows;
  for (std::size_t from = 0; from < ids.size(); from += step) {
    PerplexityWindow window;
    if (begins) window.tokens.push_back(*tokenizer.bos());
    const std::size_t to = std::min(from + step, ids.size());
    std::copy(ids.begin() + static_cast<std::ptrdiff_t>(from), ids.begin() + static_cast<std::ptrdiff_t>(to),
              std::back_inserter(window.tokens));
    if (window.tokens.size() > 1) windows.push_back(std::move(window));
  }
  return windows;
}

/// Sums over the tokens that count.
class Totals {
 public:
  void add(const RowComparison& row) {
    ++tokens_;
    canonical_ += row.canonical_loss;
    reference_ += row.reference_loss;
    divergence_ += row.divergence;
    if (row.canonical_top1 == row.reference_top1) ++agreements_;
  }

  void write(PerplexityReport& report) const {
    const auto count = static_cast<double>(tokens_);
    report.tokens = tokens_;
    report.canonical = std::exp(canonical_ / count);
    report.reference = std::exp(reference_ / count);
    report.ratio = report.canonical / report.reference;
    report.divergence = divergence_ / count;
    report.top1_agreement = static_cast<double>(agreements_) / count;
  }

 private:
  std::int64_t tokens_ = 0;
  std::int64_t agreements_ = 0;
  double canonical_ = 0;
  double reference_ = 0;
  double divergence_ = 0;
};

/// Both models side by side on one window after the other.
class Comparison {
 public:
  Comparison(const weights::ModelFile& file, backend::Backend& backend, FloatModel& reference,
             std::int32_t context)
      : canonical_(file, backend, context),
        reference_(reference),
        vocab_(static_cast<std::size_t>(file.spec().vocab)) {}

  const Totals& totals() const { return totals_; }

  Status run(PerplexityWindow& window) {
    const auto count = static_cast<std::int32_t>(window.tokens.size());
    if (Status status = canonical_.forward(window.tokens, count); !status) return status;
    reference_.forward(window.tokens);
    for (std::int32_t first = 0; first < count; first += kReferenceRows) {
      const std::int32_t end = std::min(first + kReferenceRows, count);
      const auto reference_logits = reference_.logits(first, end - first);
      const std::int32_t group = canonical_.model().max_logit_rows();
      for (std::int32_t row = first; row < end; row += group) {
        const std::int32_t rows = std::min(group, end - row);
        compare(window, row, rows, reference_logits.subspan(static_cast<std::size_t>(row - first) * vocab_));
      }
    }
    return {};
  }

 private:
  void compare(PerplexityWindow& window, std::int32_t first, std::int32_t rows,
               std::span<const float> reference_logits) {
    const auto logits = canonical_.model().logits(first, rows);
    compared_.resize(static_cast<std::size_t>(rows));
    reference_.threads().parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
      for (auto row = static_cast<std::size_t>(begin); row < static_cast<std::size_t>(end); ++row) {
        // The last position predicts a token that is not there: its loss is not counted.
        const std::size_t next =
            std::min(static_cast<std::size_t>(first) + row + 1, window.tokens.size() - 1);
        compared_[row] = compare_rows(logits.subspan(row * vocab_, vocab_),
                                      reference_logits.subspan(row * vocab_, vocab_), window.tokens[next]);
      }
    });
    for (const RowComparison& row : compared_) {
      window.canonical_top1.push_back(row.canonical_top1);
      if (window.canonical_top1.size() < window.tokens.size()) totals_.add(row);
    }
  }

  WindowRunner canonical_;
  FloatModel& reference_;
  std::size_t vocab_;
  std::vector<RowComparison> compared_;
  Totals totals_;
};

Status check_options(const weights::ModelSpec& spec, const weights::ModelSpec& reference,
                     const PerplexityOptions& options) {
  const std::int64_t most = std::min<std::int64_t>(spec.context, bounds::kMaxStepTokens);
  if (options.context < 2 || options.context > most) {
    return caller_error(
        fmt::format("a context of {} tokens; this model takes 2 to {}", options.context, most));
  }
  if (options.tokens < 0)
    return caller_error(fmt::format("{} tokens; give a positive number", options.tokens));
  if (spec.vocab != reference.vocab || spec.layers != reference.layers || spec.dim != reference.dim) {
    return caller_error(
        "the float32 reference is another model; give the GGUF file that the model was made from");
  }
  return {};
}

}  // namespace

RowComparison compare_rows(std::span<const float> canonical, std::span<const float> reference,
                           std::int32_t next) {
  const auto p_top = std::max_element(canonical.begin(), canonical.end());
  const auto q_top = std::max_element(reference.begin(), reference.end());
  double p_sum = 0;
  double q_sum = 0;
  double weighted = 0;
  for (std::size_t i = 0; i < canonical.size(); ++i) {
    const float p = canonical[i] - *p_top;
    const float q = reference[i] - *q_top;
    const auto q_weight = static_cast<double>(std::exp(q));
    p_sum += static_cast<double>(std::exp(p));
    q_sum += q_weight;
    weighted += q_weight * static_cast<double>(q - p);
  }
  const std::size_t at = static_cast<std::size_t>(next);
  return {.canonical_loss = std::log(p_sum) - static_cast<double>(canonical[at] - *p_top),
          .reference_loss = std::log(q_sum) - static_cast<double>(reference[at] - *q_top),
          .divergence = weighted / q_sum + std::log(p_sum) - std::log(q_sum),
          .canonical_top1 = static_cast<std::int32_t>(p_top - canonical.begin()),
          .reference_top1 = static_cast<std::int32_t>(q_top - reference.begin())};
}

Result<PerplexityReport> perplexity(const weights::ModelFile& file, backend::Backend& backend,
                                    FloatModel& reference, std::string_view text,
                                    const PerplexityOptions& options, const PerplexityProgress& progress) {
  if (Status status = check_options(file.spec(), reference.spec(), options); !status) return status.error();
  const auto tokenizer = tokenizer::Tokenizer::make(file.vocabulary());
  if (!tokenizer) return tokenizer.error();
  PerplexityReport report;
  report.windows = cut(**tokenizer, text, options);
  if (report.windows.empty()) return caller_error("the text is shorter than two tokens; give a longer one");

  Comparison comparison(file, backend, reference, options.context);
  std::int64_t done = 0;
  for (PerplexityWindow& window : report.windows) {
    if (Status status = comparison.run(window); !status) return status.error();
    if (progress) progress(++done, static_cast<std::int64_t>(report.windows.size()));
  }
  comparison.totals().write(report);
  return report;
}

std::string top1_lines(const PerplexityReport& report) {
  std::string out;
  for (const PerplexityWindow& window : report.windows) {
    for (std::size_t i = 0; i < window.tokens.size(); ++i) {
      out += fmt::format("{} {}\n", window.tokens[i], window.canonical_top1[i]);
    }
    out += '\n';
  }
  return out;
}

}  // namespace fieldprint::eval
