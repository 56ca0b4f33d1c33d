#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"

namespace fieldprint::backend {

struct BackendOffer {
  std::string name;
  std::string obstacle;  ///< why it cannot run here, to follow the name ("needs …"), or empty if it can
};

/// Every backend that there is, the fastest first.
std::vector<BackendOffer> backend_offers();

/// Names of the backends that this machine can run, the fastest first; "scalar" is always among them.
std::vector<std::string> available_backends();

/// Makes the backend called `name`; with an empty name the one in FIELDPRINT_BACKEND, or else the fastest.
/// `threads` 0 means every core; a GPU needs none. An unknown name, or one that this machine cannot run, is a
/// caller's error.
Result<std::unique_ptr<Backend>> select_backend(std::string_view name, int threads);

}  // namespace fieldprint::backend
