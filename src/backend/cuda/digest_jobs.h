#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/transfer.h"

namespace fieldprint::backend::cuda {

/// Page digests on a stream of their own, beside what the main stream does. Outlives what it hands out.
class DigestJobs {
 public:
  explicit DigestJobs(Stream stream) : stream_(stream) {}

  /// Of the pages as they are after what was enqueued on `main` so far.
  std::unique_ptr<PendingDigests> begin(const PageDigestArgs& args, Stream main);

 private:
  /// What the device reads and writes of one job; kept for the next one.
  struct Room {
    PinnedMemory blocks;
    PinnedMemory digests;
    Event begun{true};
    Event done{true};
  };
  class Job;

  Stream stream_;
  Event pages_written_;
  std::vector<std::unique_ptr<Room>> idle_;
};

}  // namespace fieldprint::backend::cuda
