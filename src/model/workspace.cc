#include "model/workspace.h"

#include <algorithm>

#include "exact/format.h"

namespace fieldprint::model {
namespace {

constexpr std::int64_t kInputColumns = 7;
constexpr std::int64_t kChoiceWords = sizeof(exact::TokenChoice) / sizeof(std::int32_t);
static_assert(kChoiceWords == 8);

std::int64_t widest_input(const weights::ModelSpec& spec) {
  return std::max({spec.dim, spec.heads * spec.head_dim, spec.hidden});
}

}  // namespace

Workspace::Workspace(backend::Backend& backend, const weights::ModelSpec& spec, std::int32_t token_count,
                     std::int32_t logit_rows)
    : inputs(backend, kInputColumns * std::int64_t{token_count} + kChoiceWords * (logit_rows + 1)),
      logit_flags(backend, logit_rows),
      seen(backend, std::int64_t{logit_rows} * exact::seen_words(spec.vocab)),
      residual(backend, std::int64_t{token_count} * spec.dim),
      qkv(backend, std::int64_t{token_count} * (spec.heads + 2 * spec.kv_heads) * spec.head_dim),
      wide(backend, token_count * std::max<std::int64_t>(2 * std::int64_t{spec.hidden}, widest_input(spec))),
      q(backend, std::int64_t{token_count} * spec.heads * spec.head_dim),
      q_step(backend, std::int64_t{token_count} * spec.heads),
      states(backend,
             std::int64_t{token_count} * spec.heads * 2 * backend::attention_state_floats(spec.head_dim)),
      anchor_mass(backend, std::int64_t{spec.layers} * token_count * spec.heads),
      quant_q(backend, 2 * token_count * widest_input(spec)),
      quant_scale(backend, token_count * (widest_input(spec) / exact::kBlockCols)),
      quant_block_sum(backend, token_count * (widest_input(spec) / exact::kBlockCols)),
      quant_row_sum(backend, 2 * std::int64_t{token_count}),
      logits(backend, std::int64_t{logit_rows} * spec.vocab),
      probabilities(backend, spec.vocab),
      probability_scale(backend, 1) {}

backend::QuantRows Workspace::quantised(backend::ActivationFormat format, std::int32_t cols) const {
  return {
      format,         cols, quant_q.data(), quant_scale.data(), quant_row_sum.data(), quant_block_sum.data(),
      step.non_finite};
}

void Workspace::lay_out(std::int32_t tokens) {
  std::int32_t* next = inputs.data();
  const auto column = [&] {
    std::int32_t* begin = next;
    next += tokens;
    return begin;
  };
  step = {column(), column(), column(), column(), column(), column(), column(), nullptr};
  next += (inputs.data() - next) & (kChoiceWords - 1);  // choices are aligned
  step.choices = reinterpret_cast<exact::TokenChoice*>(next);
}

}  // namespace fieldprint::model
