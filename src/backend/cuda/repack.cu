#include <algorithm>

#include "backend/cuda/repack.h"
#include "exact/format.h"

namespace fieldprint::backend::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxGrid = 132 * 32;

std::int64_t tiles_of(const PackedWeight& w) { return (w.rows + exact::kTileRows - 1) / exact::kTileRows; }
std::int64_t blocks_of(const PackedWeight& w) { return tiles_of(w) * (w.cols / exact::kBlockCols); }

/// One lane's 16 bytes a thread.
__global__ void repack_w8r(const std::uint32_t* in, uint4* out, std::int64_t lanes) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < lanes;
       i += stride) {
    // A fragment is eight groups of four columns, each [16 rows] words.
    const std::uint32_t* fragment = in + i / 32 * 128;
    const int lane = static_cast<int>(i % 32);
    const int g = lane / 4;
    const int t = lane % 4;
    out[i] = make_uint4(fragment[t * 16 + g], fragment[t * 16 + g + 8], fragment[(t + 4) * 16 + g],
                        fragment[(t + 4) * 16 + g + 8]);
  }
}

/// One lane's 8 bytes a thread, and in every fourth of a block's 40 slots of 8 bytes past the lanes the
/// coefficients.
__global__ void repack_w4g32(const std::uint8_t* in, uint2* out, std::int64_t slots) {
  constexpr int kSlots = static_cast<int>(kW4BlockBytes) / 8;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < slots;
       i += stride) {
    const std::uint8_t* block = in + i / kSlots * kW4BlockBytes;
    const int slot = static_cast<int>(i % kSlots);
    if (slot < 32) {
      const auto* words = reinterpret_cast<const std::uint32_t*>(block);
      const int row = slot / 4;
      const int t = slot % 4;
      out[i] = make_uint2(words[t * 16 + row], words[t * 16 + row + 8]);
    } else {
      const auto* half = reinterpret_cast<const std::uint16_t*>(block + 256);
      const int row = slot - 32;
      const auto pair = [half](int r) {
        return static_cast<std::uint32_t>(half[r]) | static_cast<std::uint32_t>(half[16 + r]) << 16;
      };
      out[i] = make_uint2(pair(row), pair(row + 8));
    }
  }
}

__global__ void copy_scales(const float* in, float* out, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) out[i] = in[i];
}

int grid_of(std::int64_t items) {
  return static_cast<int>(std::min<std::int64_t>((items + kThreads - 1) / kThreads, kMaxGrid));
}

}  // namespace

std::int64_t repacked_bytes(const PackedWeight& weight) {
  if (weight.format == LinearFormat::kW4G32) return blocks_of(weight) * kW4BlockBytes;
  return blocks_of(weight) * kFragmentBytes +
         tiles_of(weight) * exact::kTileRows * static_cast<std::int64_t>(sizeof(float));
}

PackedWeight repack(const PackedWeight& weight, std::uint8_t* out, Stream stream) {
  PackedWeight result = weight;
  result.data = out;
  const std::int64_t blocks = blocks_of(weight);
  if (weight.format == LinearFormat::kW4G32) {
    const std::int64_t slots = blocks * (kW4BlockBytes / 8);
    repack_w4g32<<<grid_of(slots), kThreads, 0, stream>>>(weight.data, reinterpret_cast<uint2*>(out), slots);
    check_launch("repack_w4g32");
    return result;
  }
  const std::int64_t lanes = blocks * 32;
  repack_w8r<<<grid_of(lanes), kThreads, 0, stream>>>(reinterpret_cast<const std::uint32_t*>(weight.data),
                                                      reinterpret_cast<uint4*>(out), lanes);
  check_launch("repack_w8r");
  auto* scales = reinterpret_cast<float*>(out + blocks * kFragmentBytes);
  const std::int64_t rows = tiles_of(weight) * exact::kTileRows;
  copy_scales<<<static_cast<unsigned>((rows + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      weight.row_scale, scales, rows);
  check_launch("copy_scales");
  result.row_scale = scales;
  return result;
}

}  // namespace fieldprint::backend::cuda
