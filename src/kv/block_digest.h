#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/sha256.h"
#include "kv/block_pool.h"

namespace fieldprint::kv {

/// Begins SHA-256 of every page of the given blocks: digest i·pages_per_block + layer·kv_heads + head is of
/// blocks[i]. One call may cover a whole batch,
/// so that a device can do it in one launch where the pages are.
using PageHasher = std::function<std::unique_ptr<backend::PendingDigests>(std::span<const BlockId> blocks)>;

/// Hashes pages in host memory on the calling thread. The pool must outlive the hasher, at the same address.
PageHasher host_page_hasher(const BlockPool& pool);

/// SHA-256("fieldprint kv block v0\n" ‖ page digests, layer-major, then head). It goes into receipts.
Digest block_digest(std::span<const Digest> pages);

/// The digests of `count` blocks from those of their pages, which are waited for.
std::vector<Digest> block_digests(const KvGeometry& geometry, backend::PendingDigests& pages,
                                  std::size_t count);

/// Block digests of `blocks`, in order, through `hasher`.
std::vector<Digest> block_digests(const KvGeometry& geometry, const PageHasher& hasher,
                                  std::span<const BlockId> blocks);

}  // namespace fieldprint::kv
