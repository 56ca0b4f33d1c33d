#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"

namespace fieldprint::kv {

/// Where the bytes of swapped blocks lie: slots of the size of a block. Nothing in it is trusted; whoever
/// reads a slot compares digests. Not thread-safe.
class SwapStorage {
 public:
  virtual ~SwapStorage() = default;
  /// Host memory for the bytes of a slot, until store() or the next call of another slot.
  virtual std::uint8_t* room(std::int64_t slot) = 0;
  /// Keeps what was written into room(slot). Environment error if that fails; the slot's bytes are then lost.
  virtual Status store(std::int64_t slot) = 0;
  /// The bytes of a slot that was stored, until the next call. Environment error if they cannot be read.
  virtual Result<const std::uint8_t*> load(std::int64_t slot) = 0;
};

/// Host memory for `slots` slots of `block_bytes`, mapped on demand: it costs resident memory only where a
/// slot was used. Environment error if the address space is refused.
Result<std::unique_ptr<SwapStorage>> swap_memory(std::int64_t block_bytes, std::int64_t slots);

/// A new file at `path`, for this process alone: readable by its user only, and its name is taken away as
/// soon as it is open, so that its room comes free with the process however that ends. It grows with use.
/// Bytes pass through the operating system's page cache and are never flushed: they mean nothing after a
/// crash. Caller error if there is something at `path` or no folder for it, environment error if it cannot be
/// made.
Result<std::unique_ptr<SwapStorage>> swap_file(std::int64_t block_bytes, const std::string& path);

}  // namespace fieldprint::kv
