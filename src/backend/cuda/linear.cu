#include "backend/cuda/linear.h"
#include "backend/cuda/linear_device.cuh"
#include "backend/cuda/linear_kernels.h"
#include "backend/cuda/repack.h"

namespace fieldprint::backend::cuda {
namespace {

constexpr int kEmbedThreads = 256;

/// A thread writes the four columns of one lane's word. Word w of a block stands for columns 4w…4w+3.
__global__ void embed_w8r(const __grid_constant__ EmbedArgs args) {
  const std::int64_t token = args.tokens[blockIdx.x];
  const std::int64_t tile = token / exact::kTileRows;
  const int r = static_cast<int>(token % exact::kTileRows);
  const float row_scale = args.table.row_scale[token];
  const auto* fragments =
      reinterpret_cast<const char4*>(args.table.data) + tile * exact::kTileRows * (args.table.cols / 4);
  auto* out = reinterpret_cast<float4*>(args.out + static_cast<std::int64_t>(blockIdx.x) * args.table.cols);
  for (int i = static_cast<int>(threadIdx.x); i < args.table.cols / 4; i += kEmbedThreads) {
    const int word = i % 8;
    const int lane = r % 8 * 4 + word % 4;
    const char4 q = fragments[i / 8 * 128 + lane * 4 + word / 4 * 2 + r / 8];
    const auto value = [&](signed char x) {
      return __fmul_rn(__fmul_rn(__int2float_rn(x), row_scale), args.scale);
    };
    out[i] = make_float4(value(q.x), value(q.y), value(q.z), value(q.w));
  }
}

__global__ void embed_w4g32(const __grid_constant__ EmbedArgs args) {
  const std::int64_t token = args.tokens[blockIdx.x];
  const std::int64_t tile = token / exact::kTileRows;
  const int r = static_cast<int>(token % exact::kTileRows);
  const std::uint8_t* blocks = args.table.data + tile * (args.table.cols / exact::kBlockCols) * kW4BlockBytes;
  auto* out = reinterpret_cast<float4*>(args.out + static_cast<std::int64_t>(blockIdx.x) * args.table.cols);
  for (int i = static_cast<int>(threadIdx.x); i < args.table.cols / 4; i += kEmbedThreads) {
    const int word = i % 8;
    const int lane = r % 8 * 4 + word % 4;
    const std::uint8_t* block = blocks + i / 8 * kW4BlockBytes;
    const auto* words = reinterpret_cast<const std::uint32_t*>(block);
    const std::uint32_t nibbles = words[lane * 2 + r / 8] >> (word / 4 * 4);
    const float2 coefficients = w4_coefficients(words[64 + r % 8 * 2 + r / 8]);
    const auto value = [&](int column) {
      const float q = __int2float_rn(static_cast<int>(nibbles >> (8 * column) & 15U));
      return __fmul_rn(__fmaf_rn(q, coefficients.x, coefficients.y), args.scale);
    };
    out[i] = make_float4(value(0), value(1), value(2), value(3));
  }
}

}  // namespace

void linear(const LinearArgs& args, Stream stream) {
  if (args.tokens == 0) return;
  // Where one kernel overtakes another was measured on an H100.
  const int columns = product_columns(args);
  const int tiles = (args.w.rows + exact::kTileRows - 1) / exact::kTileRows;
  if (args.w.format == LinearFormat::kW4G32) {
    const bool direct = columns <= 2 || (columns <= 8 && tiles <= 4 * multiprocessors()) ||
                        (columns <= 16 && tiles <= 2 * multiprocessors());
    return direct ? linear_w4g32_direct(args, stream) : linear_w4g32_tiled(args, stream);
  }
  constexpr int kShortRow = 2048;
  const bool direct =
      columns <= 8 || (columns <= 16 && tiles <= 2 * multiprocessors() && args.w.cols <= kShortRow);
  if (direct) return linear_w8r_direct(args, stream);
  // A large tile is 256 rows by 256 columns: they should keep a good part of the device busy.
  constexpr int kManyColumns = 256;
  const int large_tiles = (args.w.rows + 255) / 256 * ((columns + 255) / 256);
  if (columns < kManyColumns || large_tiles * 3 < multiprocessors()) return linear_w8r_tiled(args, stream);
  linear_w8r_large(args, stream);
}

void embed(const EmbedArgs& args, std::int32_t tokens, Stream stream) {
  if (tokens == 0) return;
  const auto grid = static_cast<unsigned>(tokens);
  if (args.table.format == LinearFormat::kW4G32) {
    embed_w4g32<<<grid, kEmbedThreads, 0, stream>>>(args);
  } else {
    embed_w8r<<<grid, kEmbedThreads, 0, stream>>>(args);
  }
  check_launch("embed");
}

}  // namespace fieldprint::backend::cuda
