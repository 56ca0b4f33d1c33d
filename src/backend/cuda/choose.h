#pragma once

#include "backend/cuda/device.h"
#include "backend/ops.h"

namespace fieldprint::backend::cuda {

/// Chooses the token after each row where the logits lie. Vocabularies up to 2^20 tokens.
void choose(const ChooseArgs& args, std::int32_t rows, Stream stream);

}  // namespace fieldprint::backend::cuda
