#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "backend/cuda/transfer.h"
#include "backend/ops.h"

namespace fieldprint::backend::cuda {

/// Constant host data and its copies on the device, which live as long as this. The same data at the same
/// address has one copy. Addresses are used again once a model is gone, so a copy is found by its address and
/// checked by a fingerprint of what stands there now.
class Adoption {
 public:
  Adoption(Transfer& transfer, Stream stream) : transfer_(transfer), stream_(stream) {}

  const void* adopt(const void* host, std::int64_t bytes);
  /// In the layout of repack.h.
  PackedWeight adopt(const PackedWeight& weight);

 private:
  using Place = std::pair<const void*, std::int64_t>;  ///< address and size on the host
  struct Copy {
    std::uint64_t fingerprint;
    std::uint8_t* data;
  };
  struct Weight {
    std::uint64_t fingerprint;
    PackedWeight packed;
  };

  std::uint8_t* allocate(std::int64_t bytes);

  Transfer& transfer_;
  Stream stream_;
  std::map<Place, Copy> copies_;
  std::map<Place, Weight> weights_;
  std::vector<DeviceMemory> memory_;
};

}  // namespace fieldprint::backend::cuda
