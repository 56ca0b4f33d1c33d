#include "model/workspace.h"

#include <algorithm>

#include "exact/format.h"

namespace fieldprint::model {
namespace {

std::int64_t widest_input(const weights::ModelSpec& spec) {
  return std::max({spec.dim, spec.heads * spec.head_dim, spec.hidden});
}

}  // namespace

Workspace::Workspace(backend::Backend& backend, const weights::ModelSpec& spec, std::int32_t token_count,
                     std::int32_t logit_rows)
    : tokens(backend, token_count),
      positions(backend, token_count),
      blocks(backend, token_count),
      slots(backend, token_count),
      rows(backend, token_count),
      residual(backend, std::int64_t{token_count} * spec.dim),
      qkv(backend, std::int64_t{token_count} * (spec.heads + 2 * spec.kv_heads) * spec.head_dim),
      wide(backend, token_count * std::max<std::int64_t>(2 * std::int64_t{spec.hidden}, widest_input(spec))),
      q(backend, std::int64_t{token_count} * spec.heads * spec.head_dim),
      q_step(backend, std::int64_t{token_count} * spec.heads),
      states(backend,
             std::int64_t{token_count} * spec.heads * 2 * backend::attention_state_floats(spec.head_dim)),
      anchor_mass(backend, std::int64_t{spec.layers} * token_count * spec.heads),
      non_finite(backend, token_count),
      quant_q(backend, 2 * token_count * widest_input(spec)),
      quant_scale(backend, token_count * (widest_input(spec) / exact::kBlockCols)),
      quant_block_sum(backend, token_count * (widest_input(spec) / exact::kBlockCols)),
      quant_row_sum(backend, 2 * std::int64_t{token_count}),
      logits(backend, std::int64_t{logit_rows} * spec.vocab),
      probabilities(backend, spec.vocab),
      probability_scale(backend, 1) {}

backend::QuantRows Workspace::quantised(backend::ActivationFormat format, std::int32_t cols) const {
  return {format,
          cols,
          quant_q.data(),
          quant_scale.data(),
          quant_row_sum.data(),
          quant_block_sum.data(),
          non_finite.data()};
}

}  // namespace fieldprint::model
