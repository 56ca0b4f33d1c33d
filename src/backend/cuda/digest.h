#pragma once

#include <cstdint>

#include "backend/cuda/device.h"

namespace fieldprint::backend::cuda {

/// Page i (of `count`) is page i % pages of block blocks[i / pages]; its digest goes to digests[32·i].
/// `blocks` and `digests` may be pinned host memory; `digests` is aligned to 16 bytes.
struct PageDigestBatch {
  const std::uint8_t* pool;
  std::int64_t block_stride;
  std::int64_t page_bytes;
  std::int64_t pages;  ///< per block, contiguous from the block's start
  const std::int32_t* blocks;
  std::int64_t count;
  std::uint8_t* digests;
};

/// Pages of a batch that take as long as one does.
std::int64_t page_digests_at_once();

/// SHA-256 (FIPS 180-4) of each page.
void page_digests(const PageDigestBatch& batch, Stream stream);

}  // namespace fieldprint::backend::cuda
