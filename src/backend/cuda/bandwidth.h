#pragma once

#include <cstdint>

#include "backend/cuda/device.h"

namespace fieldprint::backend::cuda {

/// Reads `bytes` (a multiple of 16) once and does nothing else: the rate that memory-bound kernels are
/// measured against. `sink` is one word that is never written in practice.
void read_all(const void* data, std::int64_t bytes, std::uint32_t* sink, Stream stream);

}  // namespace fieldprint::backend::cuda
