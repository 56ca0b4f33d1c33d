#include "backend/cuda/linear_device.cuh"
#include "backend/cuda/linear_kernels.h"
#include "backend/cuda/repack.h"

/// w8r for few tokens. A block owns one or two tiles of 16 rows; its warps share the columns of the weights,
/// which go from memory to registers without a stop.
namespace fieldprint::backend::cuda {
namespace {

/// A block of kWarps warps has kMTiles tiles of 16 rows and kNTiles tiles of 8 product columns.
template <int kWarpCount, int kMTileCount, int kNTileCount, bool kLoadsAhead>
struct W8RShape {
  static constexpr bool kAhead = kLoadsAhead;  ///< two batches of weights are on their way, else one
  static constexpr int kWarps = kWarpCount;
  static constexpr int kMTiles = kMTileCount;
  static constexpr int kNTiles = kNTileCount;
  static constexpr int kParts = kMTiles * kNTiles * 2;  ///< halves of 16 x 8 products
  static constexpr int kUnroll = 8 / kMTiles;           ///< blocks whose weights a warp has on their way
};

/// The weights of a warp's next kUnroll blocks of columns.
template <typename S>
struct Batch {
  uint4 fragments[S::kUnroll][S::kMTiles];
};

template <typename S>
__device__ __forceinline__ void load_batch(Batch<S>& batch, const LinearArgs& args, int first) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int blocks = args.w.cols / exact::kBlockCols;
  const int tiles = (args.w.rows + exact::kTileRows - 1) / exact::kTileRows;
  const int first_tile = static_cast<int>(blockIdx.x) * S::kMTiles;
  const auto* a = reinterpret_cast<const uint4*>(args.w.data) +
                  static_cast<std::int64_t>(first_tile) * blocks * 32 + lane;
#pragma unroll
  for (int u = 0; u < S::kUnroll; ++u) {
    const int block = first + u * S::kWarps;
#pragma unroll
    for (int m = 0; m < S::kMTiles; ++m) {
      batch.fragments[u][m] = load_once(a + (static_cast<std::int64_t>(m) * blocks + block) * 32,
                                        block < blocks && first_tile + m < tiles);
    }
  }
}

/// Each warp takes every kWarps-th block of columns. The first batches do not wait for earlier kernels.
template <typename S>
__device__ __forceinline__ void multiply_w8r(const LinearArgs& args, int (&sums)[S::kMTiles][S::kNTiles][4]) {
  constexpr int kStep = S::kWarps * S::kUnroll;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int blocks = args.w.cols / exact::kBlockCols;
  const int columns = product_columns(args);
  const std::int8_t* b[S::kNTiles];
#pragma unroll
  for (int n = 0; n < S::kNTiles; ++n) {
    // Columns past the last repeat it; nobody stores them.
    const int column = min((static_cast<int>(blockIdx.y) * S::kNTiles + n) * 8 + lane / 4, columns - 1);
    b[n] = args.x.q + static_cast<std::int64_t>(column) * args.w.cols + lane % 4 * 4;
  }
  Batch<S> batch;
  Batch<S> next;
  load_batch<S>(batch, args, warp);
  if (S::kAhead) load_batch<S>(next, args, warp + kStep);
  wait_for_earlier_kernels();
  for (int first = warp; first < blocks; first += kStep) {
    if (!S::kAhead && first != warp) load_batch<S>(batch, args, first);
    std::uint32_t words[S::kUnroll][S::kNTiles][2];
#pragma unroll
    for (int u = 0; u < S::kUnroll; ++u) {
      const int block = min(first + u * S::kWarps, blocks - 1);
#pragma unroll
      for (int n = 0; n < S::kNTiles; ++n) {
        words[u][n][0] = load_word(b[n] + block * 32);
        words[u][n][1] = load_word(b[n] + block * 32 + 16);
      }
    }
    __syncwarp();  // else the assembler moves each load to its use
#pragma unroll
    for (int u = 0; u < S::kUnroll; ++u) {
#pragma unroll
      for (int m = 0; m < S::kMTiles; ++m) {
#pragma unroll
        for (int n = 0; n < S::kNTiles; ++n) {
          mma_s8(sums[m][n], batch.fragments[u][m], words[u][n][0], words[u][n][1], sums[m][n]);
        }
      }
    }
    if (S::kAhead) {
      batch = next;
      if (first + 2 * kStep < blocks) load_batch<S>(next, args, first + 2 * kStep);
    }
  }
}

template <typename S, bool kA16>
__global__ void __launch_bounds__(S::kWarps * 32) w8r_kernel(const __grid_constant__ LinearArgs args) {
  static_assert(S::kParts <= S::kWarps);
  __shared__ int2 partial[S::kWarps][S::kParts][32];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  let_later_kernels_start();
  int sums[S::kMTiles][S::kNTiles][4] = {};
  multiply_w8r<S>(args, sums);
#pragma unroll
  for (int part = 0; part < S::kParts; ++part) {
    const int(&products)[4] = sums[part / 2 / S::kNTiles][part / 2 % S::kNTiles];
    partial[warp][part][lane] = make_int2(products[part % 2 * 2], products[part % 2 * 2 + 1]);
  }
  __syncthreads();
  if (warp >= S::kParts) return;
  int2 sum = make_int2(0, 0);
#pragma unroll
  for (int w = 0; w < S::kWarps; ++w) {
    const int2 other = partial[w][warp][lane];
    sum.x += other.x;
    sum.y += other.y;
  }
  const int tile = static_cast<int>(blockIdx.x) * S::kMTiles + warp / 2 / S::kNTiles;
  const int row = tile * exact::kTileRows + lane / 4 + 8 * (warp % 2);
  const int column = (static_cast<int>(blockIdx.y) * S::kNTiles + warp / 2 % S::kNTiles) * 8 + lane % 4 * 2;
  store_w8r<kA16>(args, row, column, sum.x, sum.y);
}

template <typename S>
void launch_w8r(const LinearArgs& args, Stream stream) {
  const dim3 grid(static_cast<unsigned>((args.w.rows + 16 * S::kMTiles - 1) / (16 * S::kMTiles)),
                  static_cast<unsigned>((product_columns(args) + 8 * S::kNTiles - 1) / (8 * S::kNTiles)));
  const LaunchShape shape{grid, S::kWarps * 32, 0, 1};
  args.x.format == ActivationFormat::kA16 ? launch_early(shape, stream, w8r_kernel<S, true>, args)
                                          : launch_early(shape, stream, w8r_kernel<S, false>, args);
}

}  // namespace

void linear_w8r_direct(const LinearArgs& args, Stream stream) {
  // Measured on an H100: many columns want loads ahead, and so does one token where all blocks run at once,
  // as more of the weights arrive before the kernel ahead ends; else more blocks at once. Few columns want
  // several rows a warp.
  constexpr int kManyColumns = 8192;
  constexpr int kFewColumns = 1024;
  constexpr int kOneToken = 2;  // of product columns, with a16
  if (product_columns(args) > 8) return launch_w8r<W8RShape<16, 2, 2, true>>(args, stream);
  const bool all_run = (args.w.rows + exact::kTileRows - 1) / exact::kTileRows <= 2 * multiprocessors();
  if (args.w.cols >= kManyColumns ||
      (args.w.cols > kFewColumns && all_run && product_columns(args) <= kOneToken)) {
    return launch_w8r<W8RShape<8, 1, 1, true>>(args, stream);
  }
  const bool tall = args.w.cols <= kFewColumns && args.w.rows > 64 * multiprocessors();
  tall ? launch_w8r<W8RShape<4, 2, 1, false>>(args, stream)
       : launch_w8r<W8RShape<8, 1, 1, false>>(args, stream);
}

}  // namespace fieldprint::backend::cuda
