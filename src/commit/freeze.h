#pragma once

#include <span>
#include <string_view>

#include "commit/receipt.h"
#include "commit/segment.h"
#include "core/request.h"

namespace fieldprint::commit {

/// What an answer was made with besides its request.
struct Origin {
  Digest model_digest{};
  std::string_view canon_version;
  std::vector<AnchorRecord> anchors;
  std::uint64_t anchors_at = 0;  ///< size of the ledger by which the anchors were in force
  std::vector<Input> inputs{};   ///< what entered the context besides the prompt's own text
};

/// The record with which the request's trajectory begins, once its prompt is computed. `blocks` are those
/// that the prompt fills: the sink's, the anchors', and the full ones of the context.
OpenRecord freeze_open(const Origin& origin, const core::Request& request,
                       std::span<const core::BlockRecord> blocks);

/// The record of a finished answer, which nothing changes any more. Its parent is parent_of it.
Body freeze(const Origin& origin, const core::Request& request, const core::Answer& answer);

}  // namespace fieldprint::commit
