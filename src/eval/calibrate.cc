#include "eval/calibrate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "eval/calibration_text.h"
#include "eval/kv_calibration.h"
#include "eval/window_runner.h"
#include "exact/arith.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

namespace fieldprint::eval {
namespace {

using backend::ActivationFormat;
using weights::LinearRole;

constexpr std::array kRoles = {LinearRole::kQkv, LinearRole::kAttentionOutput, LinearRole::kGateUp,
                               LinearRole::kDown, LinearRole::kOutput};
// Nats a token: a tenth of what perplexity may lose against float32, shared by five roles.
constexpr double kMostDivergence = 0.0005;
constexpr std::size_t kMostTokens = 4096;
constexpr std::size_t kRoleTokens = 512;  ///< of them, for the choice of activation formats
constexpr std::size_t kMostFirstTokens = 64;
constexpr std::size_t kLogitRows = 64;

/// What keys and values are measured on: the text, a chat, and, where sequences do not begin with BOS, tokens
/// that they may begin with.
std::vector<std::vector<std::int32_t>> sequences_of(const tokenizer::Tokenizer& tokenizer,
                                                    const std::vector<std::int32_t>& text,
                                                    std::size_t context) {
  std::vector<std::vector<std::int32_t>> out = {text};
  // A model without a chat format that we know does without.
  if (const auto chat = tokenizer::render(tokenizer, "", kCalibrationChat, true)) {
    std::vector<std::int32_t>& tokens = out.emplace_back(chat->sink);
    tokens.insert(tokens.end(), chat->context.begin(), chat->context.end());
    tokens.resize(std::min(tokens.size(), context));
  }
  if (tokenizer.vocabulary().add_bos && tokenizer.bos()) return out;
  const std::set<std::int32_t> seen(text.begin(), text.end());
  for (const std::int32_t token : seen) {
    if (out.size() == kMostFirstTokens) break;
    out.push_back({token});
  }
  return out;
}

/// One row of logits as log2 probabilities and probabilities.
struct Distribution {
  std::vector<float> logits;
  std::vector<std::int32_t> p;
  double log2_sum = 0;
  float maximum = 0;
};

/// Nothing where a logit is NaN or the largest is infinite. What the last layer, its norm and the output
/// overflow to shows only here: forward() looks at what a layer reads.
std::optional<float> finite_maximum(std::span<const float> logits) {
  float maximum = -std::numeric_limits<float>::infinity();
  for (const float logit : logits) {
    if (std::isnan(logit)) return std::nullopt;
    maximum = std::max(maximum, logit);
  }
  if (!std::isfinite(maximum)) return std::nullopt;
  return maximum;
}

/// Nothing where a row is not finite.
std::optional<std::vector<Distribution>> distributions(model::Model& model) {
  std::vector<Distribution> rows;
  const std::size_t vocab = static_cast<std::size_t>(model.spec().vocab);
  for (std::size_t row = 0; row < kLogitRows; ++row) {
    const auto logits = model.logits(static_cast<std::int32_t>(row), 1);
    const std::optional<float> maximum = finite_maximum(logits.first(vocab));
    if (!maximum) return std::nullopt;
    Distribution d;
    d.logits.assign(logits.begin(), logits.begin() + static_cast<std::ptrdiff_t>(vocab));
    const auto p = model.probabilities(0, exact::kLog2E);
    d.p.assign(p.begin(), p.end());
    std::uint64_t sum = 0;
    for (const std::int32_t value : d.p) sum += static_cast<std::uint64_t>(value);
    d.log2_sum = exact::log2_of(sum) - 30.0;
    d.maximum = *maximum;
    rows.push_back(std::move(d));
  }
  return rows;
}

/// Mean Kullback-Leibler divergence of `trial` from `base`, nats a row; infinite where `trial` is not finite.
double divergence(std::span<const Distribution> base, model::Model& trial) {
  constexpr double kLn2 = 0.6931471805599453;
  double total = 0;
  for (std::size_t row = 0; row < base.size(); ++row) {
    const Distribution& b = base[row];
    const auto logits = trial.logits(static_cast<std::int32_t>(row), 1);
    const std::optional<float> maximum = finite_maximum(logits);
    if (!maximum) return std::numeric_limits<double>::infinity();
    std::uint64_t sum = 0;
    for (const std::int32_t value : trial.probabilities(0, exact::kLog2E))
      sum += static_cast<std::uint64_t>(value);
    const double log2_sum = exact::log2_of(sum) - 30.0;
    double weighted = 0;
    double mass = 0;
    for (std::size_t i = 0; i < b.p.size(); ++i) {
      if (b.p[i] == 0) continue;
      const double ours = static_cast<double>(b.logits[i] - b.maximum);
      const double theirs = static_cast<double>(logits[i] - *maximum);
      weighted += b.p[i] * (ours - theirs);
      mass += b.p[i];
    }
    total += weighted / mass + (log2_sum - b.log2_sum) * kLn2;
  }
  return total / static_cast<double>(base.size());
}

bool has_w8r(const weights::ModelFile& file, LinearRole role) {
  const auto w8r = [](const backend::PackedWeight& w) { return w.format == backend::LinearFormat::kW8R; };
  const auto any = [&](const std::vector<backend::PackedWeight>& parts) {
    return std::any_of(parts.begin(), parts.end(), w8r);
  };
  if (role == LinearRole::kOutput) return w8r(file.output());
  return std::any_of(file.layers().begin(), file.layers().end(), [&](const weights::LayerWeights& layer) {
    return (role == LinearRole::kQkv && any(layer.qkv)) ||
           (role == LinearRole::kGateUp && any(layer.gate_up)) ||
           (role == LinearRole::kAttentionOutput && w8r(layer.attention_output)) ||
           (role == LinearRole::kDown && w8r(layer.down));
  });
}

}  // namespace

Result<weights::Calibration> calibrate(const weights::ModelFile& draft, backend::Backend& backend) {
  auto tokenizer = tokenizer::Tokenizer::make(draft.vocabulary());
  if (!tokenizer) return tokenizer.error();
  std::vector<std::int32_t> text =
      (*tokenizer)->encode(kCalibrationText, {.add_bos = true, .parse_special = false});
  const auto context = static_cast<std::size_t>(draft.spec().context);
  text.resize(std::min({text.size(), kMostTokens, context}));
  const std::span<const std::int32_t> tokens = std::span(text).first(std::min(text.size(), kRoleTokens));
  if (tokens.size() < kLogitRows + 1) {
    return caller_error("the model's context is too short to calibrate it; at least 65 tokens are needed");
  }

  weights::Calibration calibration;
  auto kv = calibrate_kv(draft, backend, sequences_of(**tokenizer, text, context));
  if (!kv) return kv.error();
  calibration.kv = std::move(*kv);
  WindowRunner runner(draft, backend, static_cast<std::int32_t>(tokens.size()));
  for (std::size_t layer = 0; layer < calibration.kv.size(); ++layer) {
    runner.model().set_kv_scales(static_cast<std::int32_t>(layer),
                                 weights::kv_scale_section(calibration.kv[layer], draft.spec().score_scale));
  }
  if (Status status = runner.forward(tokens, kLogitRows); !status) return status.error();
  const std::optional<std::vector<Distribution>> base = distributions(runner.model());
  if (!base) return overflow_error();
  for (const LinearRole role : kRoles) {
    weights::Calibration::Choice choice{ActivationFormat::kA16, 0};
    if (has_w8r(draft, role)) {
      runner.model().use_activation(role, ActivationFormat::kA8);
      if (Status status = runner.forward(tokens, kLogitRows); !status) return status.error();
      choice.divergence = divergence(*base, runner.model());
      if (choice.divergence <= kMostDivergence) choice.format = ActivationFormat::kA8;
      runner.model().use_activation(role, ActivationFormat::kA16);
    }
    calibration.roles.push_back(choice);
  }
  return calibration;
}

}  // namespace fieldprint::eval
