#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"

namespace fieldprint::backend {

/// Why this machine cannot run the CUDA backend, to follow its name ("needs a GPU; …"), or nothing if it can.
std::string cuda_obstacle();

/// The first GPU behind the backend interface. cuda_obstacle() must be empty. Running out of device memory
/// throws std::bad_alloc.
std::unique_ptr<Backend> make_cuda_backend();

}  // namespace fieldprint::backend
