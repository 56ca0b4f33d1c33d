#pragma once

#include "backend/ops.h"

/// Needs the SHA extensions of x86-64 and SSE 4.1.
namespace fieldprint::backend::sha_ni {

void digests(const DigestArgs& args, std::int64_t begin, std::int64_t end);

}  // namespace fieldprint::backend::sha_ni
