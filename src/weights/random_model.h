#pragma once

#include <cstdint>
#include <memory>

#include "weights/model_file.h"

namespace fieldprint::weights {

/// A model of the given shape in memory, for measurements: random int8 weights (w8r, every linear with
/// `activation`) of a size that keeps activations finite, norms of one, plausible scales of keys and values,
/// an empty vocabulary. What it says has no meaning; what it costs is what a trained model of this shape
/// costs. An error if the shape is not one that kernels take.
Result<std::unique_ptr<ModelFile>> random_model(const ModelSpec& spec, backend::ActivationFormat activation,
                                                std::uint64_t seed);

}  // namespace fieldprint::weights
