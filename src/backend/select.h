#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"

namespace fieldprint::backend {

/// Names of the backends that this machine can run, the fastest first; "scalar" is always among them.
std::vector<std::string> available_backends();

/// Makes the backend called `name`; with an empty name the one in FIELDPRINT_BACKEND, or else the fastest.
/// `threads` 0 means every core. An unknown name, or one that this machine cannot run, is a caller's error.
Result<std::unique_ptr<Backend>> select_backend(std::string_view name, int threads);

}  // namespace fieldprint::backend
