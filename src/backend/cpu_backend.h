#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cpu_kernels.h"

namespace fieldprint::backend {

/// The kernels of one instruction set behind the backend interface, spread over `threads` ≥ 1 threads.
std::unique_ptr<Backend> make_cpu_backend(const CpuKernels& kernels, int threads);

}  // namespace fieldprint::backend
