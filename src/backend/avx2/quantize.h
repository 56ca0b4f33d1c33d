#pragma once

#include "backend/ops.h"

namespace fieldprint::backend::avx2 {

void norm_quantize(const NormQuantizeArgs& args, std::int64_t begin, std::int64_t end);
void norm_add(const NormAddArgs& args, std::int64_t begin, std::int64_t end);
void quantize(const QuantizeArgs& args, std::int64_t begin, std::int64_t end);
void gated_quantize(const GatedQuantizeArgs& args, std::int64_t begin, std::int64_t end);
void probabilities(const ProbabilitiesArgs& args, std::int64_t begin, std::int64_t end);

}  // namespace fieldprint::backend::avx2
