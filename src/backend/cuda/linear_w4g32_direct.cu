#include "backend/cuda/linear_device.cuh"
#include "backend/cuda/linear_kernels.h"
#include "backend/cuda/repack.h"

/// w4g32 for few tokens. A block of eight warps owns a tile of 16 rows. Batches of blocks of columns go round
/// the warps: a warp multiplies its batch at any time, and folds the products when the sums of the batches
/// before reach it.
///
/// With fewer than eight tokens the eight columns of a product hold several blocks: the tokens of block j
/// stand in columns j·kTokens and on, zeros elsewhere, so that the products of a group of blocks end up side
/// by side in one accumulator and every lane has some of its own to scale. The sums then walk over the lanes
/// in the blocks' order.
namespace fieldprint::backend::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;

template <int kTokenCount, int kTileCount, int kGroupCount>
struct Shape {
  static constexpr int kTokens = kTokenCount;  ///< columns of a block: 1, 2, 4 or 8
  static constexpr int kTiles = kTileCount;  ///< tiles of 8 columns; more than one only with 8 tokens in each
  static constexpr int kGroups = kGroupCount;  ///< groups of a batch
  static constexpr int kGroupBlocks = 8 / kTokens;
  static constexpr int kBatch = kGroups * kGroupBlocks;
  /// A lane has two columns: of two blocks if there is one token, else of two tokens.
  static constexpr int kLaneBlocks = kTokens == 1 ? 2 : 1;
  static constexpr int kLaneTokens = 3 - kLaneBlocks;
  /// The sums of a row stand in kShift lanes at a time.
  static constexpr int kShift = kTokens == 1 ? 1 : kTokens / 2;
  static constexpr int kSteps = 4 / kShift;
};

/// By row half (g or g + 8) and token of the lane.
template <typename S>
struct FoldState {
  float products[S::kTiles][2][S::kLaneTokens];
  float minima[S::kTiles][2][S::kLaneTokens];
};

/// The weights of a batch as they lie in memory.
template <typename S>
struct BatchWeights {
  uint2 nibbles[S::kBatch];
  uint2 coefficients[S::kGroups][S::kLaneBlocks];
};

/// What a lane folds of one group; i counts row halves times columns as in an accumulator.
template <typename S>
struct GroupTerms {
  float dot[S::kTiles][4];
  float factor[S::kTiles][4];
  float block_sum[S::kTiles][2];
  float minimum[2][S::kLaneBlocks];  ///< by row half
  bool present[S::kLaneBlocks];
};

struct Lane {
  int index;
  int g;
  int t;
};

/// The block in its group and the token of one of the eight columns.
template <typename S>
__device__ __forceinline__ int block_of(int column) {
  return column / S::kTokens;
}
template <typename S>
__device__ __forceinline__ int token_of(int column) {
  return column % S::kTokens;
}

template <typename S>
__device__ __forceinline__ BatchWeights<S> load_batch(const std::uint8_t* tile, int first, int blocks,
                                                      Lane lane) {
  BatchWeights<S> batch;
  const auto words_of = [tile](int block) {
    return reinterpret_cast<const uint2*>(tile + static_cast<std::int64_t>(block) * kW4BlockBytes);
  };
#pragma unroll
  for (int u = 0; u < S::kBatch; ++u) {
    batch.nibbles[u] = load_once(words_of(first + u) + lane.index, first + u < blocks);
  }
#pragma unroll
  for (int group = 0; group < S::kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < S::kLaneBlocks; ++i) {
      const int block = first + group * S::kGroupBlocks + block_of<S>(2 * lane.t + i);
      batch.coefficients[group][i] = load_once(words_of(block) + 32 + lane.g, block < blocks);
    }
  }
  return batch;
}

template <typename S>
__device__ __forceinline__ GroupTerms<S> multiply_group(const LinearArgs& args, const BatchWeights<S>& batch,
                                                        int group, int first, Lane lane) {
  GroupTerms<S> terms;
  const int blocks = args.w.cols / exact::kBlockCols;
  float factors[2][S::kLaneBlocks];
#pragma unroll
  for (int i = 0; i < S::kLaneBlocks; ++i) {
    const float2 low = w4_coefficients(batch.coefficients[group][i].x);
    const float2 high = w4_coefficients(batch.coefficients[group][i].y);
    factors[0][i] = low.x;
    factors[1][i] = high.x;
    terms.minimum[0][i] = low.y;
    terms.minimum[1][i] = high.y;
    terms.present[i] = first + block_of<S>(2 * lane.t + i) < blocks;
  }
#pragma unroll
  for (int n = 0; n < S::kTiles; ++n) {
    // Blocks and tokens past the last repeat it: their products are not folded or not stored.
    const int first_token = static_cast<int>(blockIdx.y) * S::kTiles * 8 + 8 * n;
    const std::int64_t token = min(first_token + token_of<S>(lane.g), args.tokens - 1);
    const std::int8_t* q = args.x.q + token * args.w.cols +
                           min(first + block_of<S>(lane.g), blocks - 1) * exact::kBlockCols + 4 * lane.t;
    const std::uint32_t words[2] = {load_word(q), load_word(q + 16)};
    float scale[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column = 2 * lane.t + i;
      const std::int64_t at =
          static_cast<std::int64_t>(min(first_token + token_of<S>(column), args.tokens - 1)) * blocks +
          min(first + block_of<S>(column), blocks - 1);
      scale[i] = load_float(args.x.scale + at);
      terms.block_sum[n][i] = load_float(args.x.block_sum + at);
    }
    int dot[4] = {kMagicDotBits, kMagicDotBits, kMagicDotBits, kMagicDotBits};
#pragma unroll
    for (int j = 0; j < S::kGroupBlocks; ++j) {
      const bool mine = block_of<S>(lane.g) == j;
      mma_s8(dot, w4_fragment(batch.nibbles[group * S::kGroupBlocks + j]), mine ? words[0] : 0U,
             mine ? words[1] : 0U, dot);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      terms.dot[n][i] = magic_to_float(dot[i]);
      terms.factor[n][i] = __fmul_rn(factors[i / 2][i % S::kLaneBlocks], scale[i % 2]);
    }
  }
  return terms;
}

/// Folds the blocks of a group in order. All lanes compute; the sums that count begin in the first kShift
/// lanes of each four and come back to them.
template <typename S>
__device__ __forceinline__ void fold(FoldState<S>& state, const GroupTerms<S>& terms, Lane lane) {
  const int before = lane.g * 4 + ((lane.t - S::kShift) & 3);
#pragma unroll
  for (int step = 0; step < S::kSteps; ++step) {
#pragma unroll
    for (int n = 0; n < S::kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int block = i % S::kLaneBlocks;
        float& products = state.products[n][i / 2][i % S::kLaneTokens];
        float& minima = state.minima[n][i / 2][i % S::kLaneTokens];
        if (!terms.present[block]) continue;
        products = __fmaf_rn(terms.dot[n][i], terms.factor[n][i], products);
        minima = __fmaf_rn(terms.minimum[i / 2][block], terms.block_sum[n][i % 2], minima);
      }
      if constexpr (S::kSteps > 1) {
#pragma unroll
        for (int i = 0; i < 2 * S::kLaneTokens; ++i) {
          float& products = state.products[n][i / S::kLaneTokens][i % S::kLaneTokens];
          float& minima = state.minima[n][i / S::kLaneTokens][i % S::kLaneTokens];
          products = __shfl_sync(0xFFFFFFFFU, products, before);
          minima = __shfl_sync(0xFFFFFFFFU, minima, before);
        }
      }
    }
  }
}

template <typename S>
__device__ __forceinline__ void store_state(const LinearArgs& args, const FoldState<S>& state, Lane lane) {
  if (lane.t >= S::kShift) return;
#pragma unroll
  for (int n = 0; n < S::kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2 * S::kLaneTokens; ++i) {
      const int half = i / S::kLaneTokens;
      const int row = static_cast<int>(blockIdx.x) * exact::kTileRows + lane.g + 8 * half;
      const int token = (static_cast<int>(blockIdx.y) * S::kTiles + n) * 8 + 2 * lane.t + i % S::kLaneTokens;
      if (row < args.w.rows && token < args.tokens) {
        store(args, token, row,
              __fadd_rn(state.products[n][half][i % S::kLaneTokens],
                        state.minima[n][half][i % S::kLaneTokens]));
      }
    }
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads) w4g32_kernel(const __grid_constant__ LinearArgs args) {
  __shared__ FoldState<S> states[32];
  __shared__ alignas(8) std::uint64_t turns[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int index = static_cast<int>(threadIdx.x) % 32;
  const Lane lane{index, index / 4, index % 4};
  const int blocks = args.w.cols / exact::kBlockCols;
  const int batches = (blocks + S::kBatch - 1) / S::kBatch;
  if (threadIdx.x == 0) {
    for (std::uint64_t& turn : turns) barrier_init(shared_address(&turn), 1);
  }
  __syncthreads();
  let_later_kernels_start();
  const std::uint8_t* tile = args.w.data + static_cast<std::int64_t>(blockIdx.x) * blocks * kW4BlockBytes;
  int parity = 0;
  for (int batch = warp; batch < batches; batch += kWarps) {
    const int first = batch * S::kBatch;
    const BatchWeights<S> weights = load_batch<S>(tile, first, blocks, lane);
    wait_for_earlier_kernels();
    GroupTerms<S> terms[S::kGroups];
#pragma unroll
    for (int group = 0; group < S::kGroups; ++group) {
      terms[group] = multiply_group<S>(args, weights, group, first + group * S::kGroupBlocks, lane);
    }
    FoldState<S> state = {};
    if (batch > 0) {
      // The first warp's first turn needs no state: its barrier starts with its second.
      barrier_wait(shared_address(&turns[warp]), parity);
      state = states[index];
      parity ^= 1;
    }
#pragma unroll
    for (int group = 0; group < S::kGroups; ++group) fold<S>(state, terms[group], lane);
    if (batch + 1 < batches) {
      states[index] = state;
      __syncwarp();
      if (index == 0) barrier_arrive(shared_address(&turns[(warp + 1) % kWarps]));
    } else {
      store_state<S>(args, state, lane);
    }
  }
}

template <typename S>
void launch(const LinearArgs& args, Stream stream) {
  const dim3 grid(static_cast<unsigned>((args.w.rows + 15) / 16),
                  static_cast<unsigned>((args.tokens + 8 * S::kTiles - 1) / (8 * S::kTiles)));
  launch_early({grid, kThreads, 0, 1}, stream, w4g32_kernel<S>, args);
}

}  // namespace

void linear_w4g32_direct(const LinearArgs& args, Stream stream) {
  if (args.tokens == 1) return launch<Shape<1, 1, 2>>(args, stream);
  if (args.tokens == 2) return launch<Shape<2, 1, 2>>(args, stream);
  if (args.tokens <= 4) return launch<Shape<4, 1, 4>>(args, stream);
  if (args.tokens <= 8) return launch<Shape<8, 1, 8>>(args, stream);
  launch<Shape<8, 2, 4>>(args, stream);
}

}  // namespace fieldprint::backend::cuda
