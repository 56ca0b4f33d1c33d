#pragma once

#include <functional>
#include <span>
#include <vector>

#include "base/sha256.h"
#include "kv/block_pool.h"

namespace fieldprint::kv {

/// Computes SHA-256 of every page of the given blocks: out[i·pages_per_block + layer·kv_heads + head] for
/// blocks[i]. One call may cover a whole batch, so that a device can do it in one launch where the pages are.
using PageHasher = std::function<void(std::span<const BlockId> blocks, std::span<Digest> out)>;

/// Hashes pages in host memory on the calling thread. The pool must outlive the hasher, at the same address.
PageHasher host_page_hasher(const BlockPool& pool);

/// SHA-256("fieldprint kv block v0\n" ‖ page digests, layer-major, then head). It goes into receipts.
Digest block_digest(std::span<const Digest> pages);

/// Block digests of `blocks`, in order, through `hasher`.
std::vector<Digest> block_digests(const KvGeometry& geometry, const PageHasher& hasher,
                                  std::span<const BlockId> blocks);

}  // namespace fieldprint::kv
