#pragma once

#include <cstdint>

#include "backend/cuda/device.h"
#include "backend/ops.h"

/// The layout in which the CUDA kernels read weights. One layout serves decode, prefill and embed: the A
/// fragments of mma.m16n8k32 (and of wgmma with A in registers) in the order of the warp's lanes, so that a
/// lane's part is one aligned vector and a warp's part is contiguous. Lane 4g + t holds rows g and g + 8 of a
/// tile of 16.
///   kW8R:   [tiles][cols/32] fragments of 512 bytes; lane i's 16 bytes at 16·i: columns 4t…4t+3 of rows g
///   and
///           g + 8, then columns 16+4t…16+4t+3 of both
///   kW4G32: [tiles][cols/32] blocks of 320 bytes; lane i's 8 bytes at 8·i: row g, then row g + 8, byte j
///   with column
///           4t+j in its low and 16+4t+j in its high nibble; from byte 256 on, for each g, f16 d and m of row
///           g, then of row g + 8
/// Row scales follow the fragments, as in the host's layout.
namespace fieldprint::backend::cuda {

constexpr std::int64_t kFragmentBytes = 512;  ///< 16 rows × 32 columns of int8
constexpr std::int64_t kW4BlockBytes = 320;

/// Bytes that repack() writes.
std::int64_t repacked_bytes(const PackedWeight& weight);

/// Rearranges `weight`, whose data and row_scale are on the device in the layout of ops.h, into `out`
/// [repacked_bytes], 16-byte aligned. The result points into `out`.
PackedWeight repack(const PackedWeight& weight, std::uint8_t* out, Stream stream);

}  // namespace fieldprint::backend::cuda
