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

  WindowRunner canonical(file, backend, options.context);
  const auto vocab = static_cast<std::size_t>(file.spec().vocab);
  Totals totals;
  std::vector<RowComparison> rows_of_group;
  std::int64_t done = 0;
  for (PerplexityWindow& window : report.windows) {
    const auto count = static_cast<std::int32_t>(window.tokens.size());
    if (Status status = canonical.forward(window.tokens, count); !status) return status.error();
    reference.forward(window.tokens);
    for (std::int32_t first = 0; first < count; first += canonical.model().max_logit_rows()) {
      const std::int32_t rows = std::min(canonical.model().max_logit_rows(), count - first);
      const auto ours = canonical.model().logits(first, rows);
      const auto theirs = reference.logits(first, rows);
      rows_of_group.resize(static_cast<std::size_t>(rows));
      reference.threads().parallel_for(rows, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          // The last position predicts a token that is not there: its loss is not counted.
          const auto next = static_cast<std::size_t>(std::min<std::int64_t>(first + row + 1, count - 1));
          const std::size_t at = static_cast<std::size_t>(row) * vocab;
          rows_of_group[static_cast<std::size_t>(row)] =
              compare_rows(ours.subspan(at, vocab), theirs.subspan(at, vocab), window.tokens[next]);
        }
      });
      for (const RowComparison& row : rows_of_group) {
        window.canonical_top1.push_back(row.canonical_top1);
        if (window.canonical_top1.size() < window.tokens.size()) totals.add(row);
      }
    }
    if (progress) progress(++done, static_cast<std::int64_t>(report.windows.size()));
  }
  totals.write(report);
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
