#pragma once

#include "backend/amx/tiles.h"

/// w4g32: a product of tile registers gives one block's sums for 12 tokens and 16 weight rows; the vector
/// units fold them into P and M in the order of the blocks. P and M of 12 tokens are 24 of the 32 vector
/// registers, and stay there through all blocks. Sums go through memory: they are stored four blocks after
/// their product was begun, and folded two blocks after that, so that neither waits for the other.
namespace fieldprint::backend::amx {
namespace {

inline constexpr int kW4Tokens = 12;
inline constexpr int kW4Slots = 4;            ///< tile registers of sums, and blocks of sums in memory
inline constexpr int kFoldLag = 2;            ///< blocks between storing sums and folding them
inline constexpr int kChunk = 64;             ///< blocks that are unpacked at a time
inline constexpr int kSlice = 8 * kW4Tokens;  ///< tokens for which blocks are unpacked once

/// Working memory of a tile of weights, 56 KiB.
struct alignas(64) W4Scratch {
  struct Block {
    std::uint8_t q[kTileRows * kBlockCols];  ///< int8 [8][16][4]
    float d[kTileRows];
    float m[kTileRows];
  };
  struct Sums {
    std::int32_t of[kW4Tokens][kTileRows];
  };
  struct State {
    float p[kTileRows];
    float m[kTileRows];
  };
  Sums sums[kW4Slots];
  Block weights[kChunk];
  State state[kSlice];  ///< P and M between two chunks
};

/// `count` blocks from `first` on of a tile of weights, for kW4Tokens tokens.
struct W4Chunk {
  std::int64_t tile;
  std::int64_t token;
  int first;
  int count;
};

inline void w4_unpack(const LinearArgs& args, const W4Chunk& chunk, W4Scratch& scratch) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const std::int64_t blocks = args.w.cols / kBlockCols;
  const std::uint8_t* w = args.w.data + (chunk.tile * blocks + chunk.first) * kW4TileBlockBytes;
  for (int b = 0; b < chunk.count; ++b, w += kW4TileBlockBytes) {
    W4Scratch::Block& out = scratch.weights[b];
    for (int g = 0; g < 4; ++g) {
      const __m512i packed = _mm512_loadu_si512(w + g * 64);
      _mm512_store_si512(out.q + g * 64, _mm512_and_si512(packed, nibble));
      _mm512_store_si512(out.q + (4 + g) * 64, _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble));
    }
    const __m512i halves = _mm512_loadu_si512(w + 256);
    _mm512_store_ps(out.d, _mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
    _mm512_store_ps(out.m, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)));
  }
  publish_stores();
}

/// Begins the sums of a block in tile register kSlot. The operands' registers alternate too.
template <int kSlot>
void w4_multiply(const std::int8_t* q, std::int64_t cols, const std::uint8_t* w) {
  if constexpr (kSlot % 2 == 0) {
    _tile_loadd(4, q, cols);
    _tile_loadd(6, w, 64);
  } else {
    _tile_loadd(5, q, cols);
    _tile_loadd(7, w, 64);
  }
  if constexpr (kSlot == 0) {
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
  } else if constexpr (kSlot == 1) {
    _tile_zero(1);
    _tile_dpbssd(1, 5, 7);
  } else if constexpr (kSlot == 2) {
    _tile_zero(2);
    _tile_dpbssd(2, 4, 6);
  } else {
    _tile_zero(3);
    _tile_dpbssd(3, 5, 7);
  }
}

template <int kSlot>
void w4_store(W4Scratch::Sums& out) {
  if constexpr (kSlot == 0) {
    _tile_stored(0, out.of, 64);
  } else if constexpr (kSlot == 1) {
    _tile_stored(1, out.of, 64);
  } else if constexpr (kSlot == 2) {
    _tile_stored(2, out.of, 64);
  } else {
    _tile_stored(3, out.of, 64);
  }
}

/// What a chunk is computed from; pointers to its first block of its first token.
struct W4Operands {
  const std::int8_t* q;
  const float* scale;
  const float* block_sum;
  std::int64_t cols;
  std::int64_t blocks;
  int count;
  W4Scratch& scratch;
};

template <int kSlot>
void w4_begin(const W4Operands& in, int b) {
  if (b < in.count) w4_multiply<kSlot>(in.q + b * kBlockCols, in.cols, in.scratch.weights[b].q);
}

/// Stores block b, begins the one that takes its register, and folds an earlier one. Inlined always: P and M
/// must not be an object in memory.
template <int kSlot>
[[gnu::always_inline]] inline void w4_step(const W4Operands& in, int b, __m512 (&p)[kW4Tokens],
                                           __m512 (&m)[kW4Tokens]) {
  if (b < in.count) {
    w4_store<kSlot>(in.scratch.sums[kSlot]);
    w4_begin<kSlot>(in, b + kW4Slots);
  }
  const int folded = b - kFoldLag;
  if (folded < 0 || folded >= in.count) return;
  const W4Scratch::Sums& sums = in.scratch.sums[(kSlot + kW4Slots - kFoldLag) % kW4Slots];
  const __m512 weight_d = _mm512_load_ps(in.scratch.weights[folded].d);
  const __m512 weight_m = _mm512_load_ps(in.scratch.weights[folded].m);
#pragma GCC unroll 16
  for (int j = 0; j < kW4Tokens; ++j) {
    const std::int64_t at = j * in.blocks + folded;
    const __m512 factor = _mm512_mul_ps(weight_d, _mm512_set1_ps(in.scale[at]));
    p[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums.of[j])), factor, p[j]);
    m[j] = _mm512_fmadd_ps(weight_m, _mm512_set1_ps(in.block_sum[at]), m[j]);
  }
}

/// One chunk for kW4Tokens tokens; the outputs with the last.
inline void w4_chunk(const LinearArgs& args, const W4Chunk& chunk, W4Scratch& scratch,
                     W4Scratch::State* state) {
  static_assert(kW4Slots == 4 && kFoldLag < kW4Slots);
  const std::int64_t cols = args.w.cols;
  const std::int64_t blocks = cols / kBlockCols;
  const std::int64_t at = chunk.token * blocks + chunk.first;
  const W4Operands in{.q = args.x.q + at * kBlockCols,
                      .scale = args.x.scale + at,
                      .block_sum = args.x.block_sum + at,
                      .cols = cols,
                      .blocks = blocks,
                      .count = chunk.count,
                      .scratch = scratch};
  // Unrolled, every loop over them, so that they are registers.
  __m512 p[kW4Tokens];
  __m512 m[kW4Tokens];
#pragma GCC unroll 16
  for (int j = 0; j < kW4Tokens; ++j) {
    p[j] = chunk.first == 0 ? _mm512_setzero_ps() : _mm512_load_ps(state[j].p);
    m[j] = chunk.first == 0 ? _mm512_setzero_ps() : _mm512_load_ps(state[j].m);
  }
  w4_begin<0>(in, 0);
  w4_begin<1>(in, 1);
  w4_begin<2>(in, 2);
  w4_begin<3>(in, 3);
  for (int b = 0; b < chunk.count + kFoldLag; b += kW4Slots) {
    w4_step<0>(in, b, p, m);
    w4_step<1>(in, b + 1, p, m);
    w4_step<2>(in, b + 2, p, m);
    w4_step<3>(in, b + 3, p, m);
  }
  const bool last = chunk.first + chunk.count == blocks;
#pragma GCC unroll 16
  for (int j = 0; j < kW4Tokens; ++j) {
    if (last) {
      store_outputs(args, chunk.tile, chunk.token + j, _mm512_add_ps(p[j], m[j]));
    } else {
      _mm512_store_ps(state[j].p, p[j]);
      _mm512_store_ps(state[j].m, m[j]);
    }
  }
}

/// The first `tokens` tokens, a multiple of kW4Tokens.
inline void w4_tiles(const LinearArgs& args, std::int64_t begin, std::int64_t end, std::int64_t tokens) {
  W4Scratch scratch;
  const int blocks = args.w.cols / kBlockCols;
  for (std::int64_t tile = begin; tile < end; ++tile) {
    for (std::int64_t slice = 0; slice < tokens; slice += kSlice) {
      const std::int64_t slice_end = slice + kSlice < tokens ? slice + kSlice : tokens;
      for (int first = 0; first < blocks; first += kChunk) {
        const int count = blocks - first < kChunk ? blocks - first : kChunk;
        w4_unpack(args, {tile, slice, first, count}, scratch);
        for (std::int64_t t = slice; t < slice_end; t += kW4Tokens) {
          w4_chunk(args, {tile, t, first, count}, scratch, scratch.state + (t - slice));
        }
      }
    }
  }
}

}  // namespace
}  // namespace fieldprint::backend::amx
