#pragma once

#include "backend/backend.h"
#include "base/result.h"
#include "weights/import.h"

namespace fieldprint::eval {

/// Runs the draft of an import over a built-in text and measures what only running it can tell: the offsets
/// and scales of keys and values, and which linears keep their accuracy with 8-bit activations. The
/// arithmetic is canonical or plain binary64, so every machine and backend measures the same. A model that
/// overflows on that text, and one with a context below 65 tokens, is the caller's error.
Result<weights::Calibration> calibrate(const weights::ModelFile& draft, backend::Backend& backend);

}  // namespace fieldprint::eval
