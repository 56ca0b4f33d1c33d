#pragma once

#include <memory>

#include "backend/backend.h"
#include "kv/block_digest.h"
#include "kv/block_pool.h"

namespace fieldprint::kv {

/// Block memory where `backend` computes. The backend must outlive it.
std::unique_ptr<BlockMemory> backend_memory(backend::Backend& backend, std::int64_t bytes);

/// Hashes the pages of `pool` where they lie. Pool and backend must outlive the hasher, at the same address.
PageHasher backend_page_hasher(backend::Backend& backend, const BlockPool& pool);

}  // namespace fieldprint::kv
