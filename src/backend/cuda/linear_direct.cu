#include "backend/cuda/linear_device.cuh"
#include "backend/cuda/linear_kernels.h"
#include "backend/cuda/repack.h"

/// Kernels for few tokens. A block of eight warps owns a tile of 16 rows and 8 or 16 product columns; its
/// warps share the columns of the weights, which go from memory to registers without a stop.
namespace fieldprint::backend::cuda {
namespace {

constexpr int kWarps = 8;  ///< of a w4g32 block
constexpr int kThreads = 32 * kWarps;

/// Weights are read once: past the first level cache. Zero where not `wanted`; no branch, so that loads stay
/// in flight together.
__device__ __forceinline__ uint4 load_once(const uint4* p, bool wanted) {
  uint4 v;
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %5, 0;\n"
      " mov.b32 %0, 0;\n mov.b32 %1, 0;\n mov.b32 %2, 0;\n mov.b32 %3, 0;\n"
      " @p ld.global.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(p), "r"(static_cast<int>(wanted))
      : "memory");
  return v;
}
__device__ __forceinline__ uint2 load_once(const uint2* p, bool wanted) {
  uint2 v;
  asm volatile(
      "{\n .reg .pred p;\n setp.ne.b32 p, %3, 0;\n mov.b32 %0, 0;\n mov.b32 %1, 0;\n"
      " @p ld.global.L1::no_allocate.L2::256B.v2.u32 {%0,%1}, [%2];\n}"
      : "=&r"(v.x), "=&r"(v.y)
      : "l"(p), "r"(static_cast<int>(wanted))
      : "memory");
  return v;
}

/// What an earlier kernel wrote; not to be moved past the wait for it, nor to its use.
__device__ __forceinline__ std::uint32_t load_word(const void* p) {
  std::uint32_t v;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ float load_float(const float* p) { return __uint_as_float(load_word(p)); }

/// A block of kWarps warps has kMTiles tiles of 16 rows and kNTiles tiles of 8 product columns.
template <int kWarpCount, int kMTileCount, int kNTileCount>
struct W8RShape {
  static constexpr int kWarps = kWarpCount;
  static constexpr int kMTiles = kMTileCount;
  static constexpr int kNTiles = kNTileCount;
  static constexpr int kParts = kMTiles * kNTiles * 2;  ///< halves of 16 x 8 products
  static constexpr int kUnroll = 8 / kMTiles;           ///< blocks whose weights a warp has on their way
};

template <typename S>
__device__ __forceinline__ void multiply_w8r(const LinearArgs& args, int (&sums)[S::kMTiles][S::kNTiles][4]) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int blocks = args.w.cols / exact::kBlockCols;
  const int columns = product_columns(args);
  const int tiles = (args.w.rows + exact::kTileRows - 1) / exact::kTileRows;
  const int first_tile = static_cast<int>(blockIdx.x) * S::kMTiles;
  const auto* a = reinterpret_cast<const uint4*>(args.w.data) +
                  static_cast<std::int64_t>(first_tile) * blocks * 32 + lane;
  const std::int8_t* b[S::kNTiles];
#pragma unroll
  for (int n = 0; n < S::kNTiles; ++n) {
    // Columns past the last repeat it; nobody stores them.
    const int column = min((static_cast<int>(blockIdx.y) * S::kNTiles + n) * 8 + lane / 4, columns - 1);
    b[n] = args.x.q + static_cast<std::int64_t>(column) * args.w.cols + lane % 4 * 4;
  }
  for (int first = warp; first < blocks; first += S::kWarps * S::kUnroll) {
    uint4 fragments[S::kUnroll][S::kMTiles];
    std::uint32_t words[S::kUnroll][S::kNTiles][2];
#pragma unroll
    for (int u = 0; u < S::kUnroll; ++u) {
      const int block = first + u * S::kWarps;
#pragma unroll
      for (int m = 0; m < S::kMTiles; ++m) {
        fragments[u][m] = load_once(a + (static_cast<std::int64_t>(m) * blocks + block) * 32,
                                    block < blocks && first_tile + m < tiles);
      }
    }
    wait_for_earlier_kernels();
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
          mma_s8(sums[m][n], fragments[u][m], words[u][n][0], words[u][n][1], sums[m][n]);
        }
      }
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
  wait_for_earlier_kernels();  // also where a warp had no weights
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

/// What a lane folds of one w4g32 block: dot products and their factors by row half and column.
template <int kTiles>
struct BlockTerms {
  float dot[kTiles][4];
  float factor[kTiles][4];
  float minimum[2];
  float2 block_sum[kTiles];
};

/// The two sums of one (row, token): products and minima.
template <int kTiles>
struct FoldState {
  float products[kTiles][4];
  float minima[kTiles][4];
};

template <int kTiles>
struct ColumnPointers {
  const std::int8_t* q[kTiles];   ///< lane's first word of token g
  const float* scale[kTiles][2];  ///< tokens 2t and 2t + 1
  const float* block_sum[kTiles][2];
};

template <int kTiles>
__device__ __forceinline__ ColumnPointers<kTiles> column_pointers(const LinearArgs& args, int first_column,
                                                                  int g, int t) {
  ColumnPointers<kTiles> p;
  const std::int64_t blocks = args.w.cols / exact::kBlockCols;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const std::int64_t token = min(first_column + n * 8 + g, args.tokens - 1);
    p.q[n] = args.x.q + token * args.w.cols + 4 * t;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int64_t column = min(first_column + n * 8 + 2 * t + i, args.tokens - 1);
      p.scale[n][i] = args.x.scale + column * blocks;
      p.block_sum[n][i] = args.x.block_sum + column * blocks;
    }
  }
  return p;
}

template <int kTiles>
__device__ __forceinline__ BlockTerms<kTiles> block_terms(uint2 nibbles, uint2 coefficients, int block,
                                                          const ColumnPointers<kTiles>& p) {
  constexpr int kMagic[4] = {kMagicDotBits, kMagicDotBits, kMagicDotBits, kMagicDotBits};
  BlockTerms<kTiles> terms;
  const uint4 fragment = w4_fragment(nibbles);
  const float2 low = w4_coefficients(coefficients.x);
  const float2 high = w4_coefficients(coefficients.y);
  terms.minimum[0] = low.y;
  terms.minimum[1] = high.y;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    int dot[4];
    mma_s8(dot, fragment, load_word(p.q[n] + block * 32), load_word(p.q[n] + block * 32 + 16), kMagic);
    const float scale[2] = {load_float(p.scale[n][0] + block), load_float(p.scale[n][1] + block)};
    terms.block_sum[n] =
        make_float2(load_float(p.block_sum[n][0] + block), load_float(p.block_sum[n][1] + block));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      terms.dot[n][i] = magic_to_float(dot[i]);
      terms.factor[n][i] = __fmul_rn(i < 2 ? low.x : high.x, scale[i % 2]);
    }
  }
  return terms;
}

template <int kTiles>
__device__ __forceinline__ void fold(FoldState<kTiles>& state, const BlockTerms<kTiles>& terms) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float block_sum = i % 2 == 0 ? terms.block_sum[n].x : terms.block_sum[n].y;
      state.products[n][i] = __fmaf_rn(terms.dot[n][i], terms.factor[n][i], state.products[n][i]);
      state.minima[n][i] = __fmaf_rn(terms.minimum[i / 2], block_sum, state.minima[n][i]);
    }
  }
}

/// Batches of blocks go round the warps. A warp computes the terms of its batch at any time and folds them
/// when the state of the batch before reaches it.
template <int kTiles>
__global__ void __launch_bounds__(kThreads) w4g32_kernel(const __grid_constant__ LinearArgs args) {
  constexpr int kBatch = kTiles == 1 ? 8 : 4;
  __shared__ FoldState<kTiles> states[32];
  __shared__ alignas(8) std::uint64_t turns[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int blocks = args.w.cols / exact::kBlockCols;
  const int batches = (blocks + kBatch - 1) / kBatch;
  const int first_column = static_cast<int>(blockIdx.y) * kTiles * 8;
  if (threadIdx.x == 0) {
    for (std::uint64_t& turn : turns) barrier_init(shared_address(&turn), 1);
  }
  __syncthreads();

  let_later_kernels_start();
  const std::uint8_t* tile = args.w.data + static_cast<std::int64_t>(blockIdx.x) * blocks * kW4BlockBytes;
  const ColumnPointers<kTiles> pointers = column_pointers<kTiles>(args, first_column, g, t);
  int parity = 0;
  for (int batch = warp; batch < batches; batch += kWarps) {
    uint2 nibbles[kBatch];
    uint2 coefficients[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int block = batch * kBatch + u;
      const auto* words =
          reinterpret_cast<const uint2*>(tile + static_cast<std::int64_t>(block) * kW4BlockBytes);
      nibbles[u] = load_once(words + lane, block < blocks);
      coefficients[u] = load_once(words + 32 + g, block < blocks);
    }
    wait_for_earlier_kernels();
    BlockTerms<kTiles> terms[kBatch];
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      const int block = min(batch * kBatch + u, blocks - 1);
      terms[u] = block_terms<kTiles>(nibbles[u], coefficients[u], block, pointers);
    }
    FoldState<kTiles> state = {};
    if (batch > 0) {
      // The first warp's first turn needs no state: its barrier starts with its second.
      barrier_wait(shared_address(&turns[warp]), parity);
      state = states[lane];
      parity ^= 1;
    }
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (batch * kBatch + u < blocks) fold<kTiles>(state, terms[u]);
    }
    if (batch + 1 < batches) {
      states[lane] = state;
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&turns[(warp + 1) % kWarps]));
      continue;
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = static_cast<int>(blockIdx.x) * exact::kTileRows + g + 8 * (i / 2);
        const int token = first_column + n * 8 + 2 * t + i % 2;
        if (row < args.w.rows && token < args.tokens) {
          store(args, token, row, __fadd_rn(state.products[n][i], state.minima[n][i]));
        }
      }
    }
  }
}

template <int kTiles>
void launch_w4g32(const LinearArgs& args, Stream stream) {
  const dim3 grid(static_cast<unsigned>((args.w.rows + 15) / 16),
                  static_cast<unsigned>((args.tokens + 8 * kTiles - 1) / (8 * kTiles)));
  launch_early({grid, kThreads, 0, 1}, stream, w4g32_kernel<kTiles>, args);
}

}  // namespace

void linear_w8r_direct(const LinearArgs& args, Stream stream) {
  if (product_columns(args) <= 8) return launch_w8r<W8RShape<8, 1, 1>>(args, stream);
  launch_w8r<W8RShape<16, 2, 2>>(args, stream);
}

void linear_w4g32_direct(const LinearArgs& args, Stream stream) {
  args.tokens <= 8 ? launch_w4g32<1>(args, stream) : launch_w4g32<2>(args, stream);
}

}  // namespace fieldprint::backend::cuda
