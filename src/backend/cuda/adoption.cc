#include "backend/cuda/adoption.h"

#include <cuda_runtime_api.h>

#include <array>
#include <bit>
#include <cstring>

#include "backend/cuda/repack.h"
#include "exact/format.h"

namespace fieldprint::backend::cuda {
namespace {

/// A hash at the speed of memory: it tells changed data from unchanged data, not friend from foe.
std::uint64_t fingerprint(const void* host, std::int64_t bytes) {
  constexpr std::size_t kLanes = 8;
  constexpr std::uint64_t kMultiplier = 0x9E3779B97F4A7C15U;
  const auto* data = static_cast<const std::uint8_t*>(host);
  const auto size = static_cast<std::size_t>(bytes);
  std::array<std::uint64_t, kLanes> lanes{};
  std::size_t at = 0;
  const auto mix = [&](std::size_t count) {
    std::array<std::uint64_t, kLanes> words{};
    std::memcpy(words.data(), data + at, count);
    for (std::size_t i = 0; i < kLanes; ++i) {
      lanes[i] = std::rotl((lanes[i] ^ words[i]) * kMultiplier, 29);
    }
  };
  for (; at + sizeof lanes <= size; at += sizeof lanes) mix(sizeof lanes);
  mix(size - at);
  std::uint64_t hash = size;
  for (const std::uint64_t lane : lanes) hash = std::rotl((hash ^ lane) * kMultiplier, 32);
  return hash;
}

std::int64_t padded_rows(const PackedWeight& w) {
  return (std::int64_t{w.rows} + exact::kTileRows - 1) / exact::kTileRows * exact::kTileRows;
}

std::int64_t host_bytes(const PackedWeight& w) {
  if (w.format == LinearFormat::kW8R) return padded_rows(w) * w.cols;
  return padded_rows(w) / exact::kTileRows * (w.cols / exact::kBlockCols) * exact::kW4TileBlockBytes;
}

std::int64_t scale_bytes(const PackedWeight& w) {
  return w.format == LinearFormat::kW8R ? padded_rows(w) * 4 : 0;
}

/// Device memory that is free again when the stream has come past its end.
class StreamMemory {
 public:
  StreamMemory(std::int64_t bytes, Stream stream) : stream_(stream) {
    check(cudaMallocAsync(&data_, static_cast<std::size_t>(bytes), stream), "cudaMallocAsync");
  }
  ~StreamMemory() { check(cudaFreeAsync(data_, stream_), "cudaFreeAsync"); }
  StreamMemory(const StreamMemory&) = delete;
  StreamMemory& operator=(const StreamMemory&) = delete;
  std::uint8_t* data() const { return static_cast<std::uint8_t*>(data_); }

 private:
  void* data_ = nullptr;
  Stream stream_;
};

}  // namespace

std::uint8_t* Adoption::allocate(std::int64_t bytes) { return memory_.emplace_back(bytes).data(); }

const void* Adoption::adopt(const void* host, std::int64_t bytes) {
  const std::uint64_t print = fingerprint(host, bytes);
  const auto found = copies_.find({host, bytes});
  if (found != copies_.end() && found->second.fingerprint == print) return found->second.data;
  std::uint8_t* data = allocate(bytes);
  transfer_.upload(data, host, bytes);
  copies_[{host, bytes}] = {print, data};
  return data;
}

PackedWeight Adoption::adopt(const PackedWeight& weight) {
  const std::int64_t bytes = host_bytes(weight);
  const std::int64_t scales = scale_bytes(weight);
  std::uint64_t print = fingerprint(weight.data, bytes) ^ static_cast<std::uint64_t>(weight.cols);
  if (scales > 0) print += fingerprint(weight.row_scale, scales);
  const auto found = weights_.find({weight.data, bytes});
  if (found == weights_.end() || found->second.fingerprint != print) {
    const StreamMemory staged(bytes + scales, stream_);
    PackedWeight on_device = weight;
    transfer_.upload(staged.data(), weight.data, bytes);
    transfer_.upload(staged.data() + bytes, weight.row_scale, scales);
    on_device.data = staged.data();
    on_device.row_scale = reinterpret_cast<const float*>(staged.data() + bytes);
    const PackedWeight packed = repack(on_device, allocate(repacked_bytes(weight)), stream_);
    weights_[{weight.data, bytes}] = {print, packed};
  }
  PackedWeight out = weights_[{weight.data, bytes}].packed;
  // Rows beyond the last are padding, and the activation is the caller's choice.
  out.rows = weight.rows;
  out.activation = weight.activation;
  return out;
}

}  // namespace fieldprint::backend::cuda
