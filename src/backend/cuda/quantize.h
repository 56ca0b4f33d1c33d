#pragma once

#include "backend/cuda/device.h"
#include "backend/ops.h"

/// Norms, quantisers and probabilities. Pointers are device pointers; rows of floats are aligned to 16 bytes.
namespace fieldprint::backend::cuda {

void norm_quantize(const NormQuantizeArgs& args, std::int32_t tokens, Stream stream);
void norm_add(const NormAddArgs& args, std::int32_t tokens, Stream stream);
void quantize(const QuantizeArgs& args, std::int32_t tokens, Stream stream);
void gated_quantize(const GatedQuantizeArgs& args, std::int32_t tokens, Stream stream);
void probabilities(const ProbabilitiesArgs& args, std::int32_t rows, Stream stream);

}  // namespace fieldprint::backend::cuda
