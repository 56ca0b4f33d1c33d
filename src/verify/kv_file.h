#pragma once

#include <cstdint>
#include <span>

#include "commit/envelope.h"
#include "verify/replay.h"

namespace fieldprint::verify {

/// Compares KV blocks kept in a file (block after block, in table order) with the replayed ones, and names
/// the first difference down to layer, head, token and channel.
commit::Check check_kv_file(std::span<const std::uint8_t> kv, const commit::Body& body, const Replay& replay,
                            const weights::ModelSpec& spec);

}  // namespace fieldprint::verify
