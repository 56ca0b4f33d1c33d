#pragma once

#include <string_view>

#include "commit/receipt.h"
#include "core/request.h"

namespace fieldprint::commit {

/// What an answer was made with besides its request.
struct Origin {
  Digest model_digest{};
  std::string_view canon_version;
  std::vector<AnchorRecord> anchors;
};

/// The record of a finished answer, which nothing changes any more.
Body freeze(const Origin& origin, const core::Request& request, const core::Answer& answer);

}  // namespace fieldprint::commit
