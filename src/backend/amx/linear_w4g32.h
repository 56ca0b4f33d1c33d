#pragma once

#include "backend/amx/tiles.h"

/// w4g32: a product of tile registers gives one block's sums for 12 tokens and 16 weight rows; the vector
/// units fold them into P in the order of the blocks. P of 12 tokens and two tiles of weights is 24 of the 32
/// vector registers, and stays there through all blocks; so each tile of activations and each scale is loaded
/// once for 32 weight rows. M needs no sums, and is computed before, with the same registers. Sums go through
/// memory: they are stored two blocks after their product was begun, and folded one block after that, so that
/// neither waits for the other.
namespace fieldprint::backend::amx {
namespace {

inline constexpr int kW4Tokens = 12;
inline constexpr int kW4Slots = 2;            ///< blocks whose sums are in tile registers, and in memory
inline constexpr int kChunk = 32;             ///< blocks that are unpacked at a time
inline constexpr int kSlice = 8 * kW4Tokens;  ///< tokens for which blocks are unpacked once

/// Working memory of kTiles tiles of weights, 67 KiB for two.
template <int kTiles>
struct alignas(64) W4Scratch {
  struct Block {
    std::uint8_t q[kTiles][kTileRows * kBlockCols];  ///< int8 [8][16][4]
    float d[kTiles][kTileRows];
    float m[kTiles][kTileRows];
  };
  struct Sums {
    std::int32_t of[kTiles][kW4Tokens][kTileRows];
  };
  struct State {
    float p[kTiles][kTileRows];
    float m[kTiles][kTileRows];
  };
  Sums sums[kW4Slots];
  Block weights[kChunk];
  State state[kSlice];  ///< P between two chunks, and M
};

/// `count` blocks from `first` on of kTiles tiles of weights, for kW4Tokens tokens.
struct W4Chunk {
  std::int64_t tile;
  std::int64_t token;
  int first;
  int count;
};

template <int kTiles>
void w4_unpack(const LinearArgs& args, const W4Chunk& chunk, W4Scratch<kTiles>& scratch) {
  const __m512i nibble = _mm512_set1_epi8(15);
  const std::int64_t blocks = args.w.cols / kBlockCols;
  for (int n = 0; n < kTiles; ++n) {
    const std::uint8_t* w = args.w.data + ((chunk.tile + n) * blocks + chunk.first) * kW4TileBlockBytes;
    for (int b = 0; b < chunk.count; ++b, w += kW4TileBlockBytes) {
      typename W4Scratch<kTiles>::Block& out = scratch.weights[b];
      for (int g = 0; g < 4; ++g) {
        const __m512i packed = _mm512_loadu_si512(w + g * 64);
        _mm512_store_si512(out.q[n] + g * 64, _mm512_and_si512(packed, nibble));
        _mm512_store_si512(out.q[n] + (4 + g) * 64, _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble));
      }
      const __m512i halves = _mm512_loadu_si512(w + 256);
      _mm512_store_ps(out.d[n], _mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
      _mm512_store_ps(out.m[n], _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)));
    }
  }
  publish_stores();
}

/// What a chunk is computed from; pointers to its first block of its first token.
template <int kTiles>
struct W4Operands {
  const std::int8_t* q;
  const float* scale;
  const float* block_sum;
  std::int64_t cols;
  std::int64_t blocks;
  int count;
  W4Scratch<kTiles>& scratch;
};

/// Begins the sums of block b in tile registers 2·kSlot and 2·kSlot + 1.
template <int kTiles, int kSlot>
void w4_begin(const W4Operands<kTiles>& in, int b) {
  if (b >= in.count) return;
  const auto& w = in.scratch.weights[b];
  if constexpr (kSlot == 0) {
    _tile_loadd(4, in.q + b * kBlockCols, in.cols);
    _tile_loadd(6, w.q[0], 64);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    if constexpr (kTiles == 2) {
      _tile_loadd(7, w.q[1], 64);
      _tile_zero(1);
      _tile_dpbssd(1, 4, 7);
    }
  } else {
    _tile_loadd(5, in.q + b * kBlockCols, in.cols);
    _tile_loadd(6, w.q[0], 64);
    _tile_zero(2);
    _tile_dpbssd(2, 5, 6);
    if constexpr (kTiles == 2) {
      _tile_loadd(7, w.q[1], 64);
      _tile_zero(3);
      _tile_dpbssd(3, 5, 7);
    }
  }
}

template <int kTiles, int kSlot>
void w4_store(typename W4Scratch<kTiles>::Sums& out) {
  if constexpr (kSlot == 0) {
    _tile_stored(0, out.of[0], 64);
    if constexpr (kTiles == 2) _tile_stored(1, out.of[1], 64);
  } else {
    _tile_stored(2, out.of[0], 64);
    if constexpr (kTiles == 2) _tile_stored(3, out.of[1], 64);
  }
}

/// Stores block b, begins the one that takes its registers, and folds the one before. Inlined always: P must
/// not be an object in memory.
template <int kTiles, int kSlot>
[[gnu::always_inline]] inline void w4_step(const W4Operands<kTiles>& in, int b,
                                           __m512 (&p)[kTiles][kW4Tokens]) {
  if (b < in.count) {
    w4_store<kTiles, kSlot>(in.scratch.sums[kSlot]);
    w4_begin<kTiles, kSlot>(in, b + kW4Slots);
  }
  const int folded = b - 1;
  if (folded < 0 || folded >= in.count) return;
  const auto& sums = in.scratch.sums[1 - kSlot];
  __m512 d[kTiles];
  for (int n = 0; n < kTiles; ++n) d[n] = _mm512_load_ps(in.scratch.weights[folded].d[n]);
#pragma GCC unroll 16
  for (int j = 0; j < kW4Tokens; ++j) {
    const __m512 scale = _mm512_set1_ps(in.scale[j * in.blocks + folded]);
#pragma GCC unroll 2
    for (int n = 0; n < kTiles; ++n) {
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(sums.of[n][j]));
      p[n][j] = _mm512_fmadd_ps(sum, _mm512_mul_ps(d[n], scale), p[n][j]);
    }
  }
}

/// M of a chunk.
template <int kTiles>
void w4_minima(const W4Operands<kTiles>& in, bool first, typename W4Scratch<kTiles>::State* state) {
  __m512 m[kTiles][kW4Tokens];
#pragma GCC unroll 16
  for (int j = 0; j < kW4Tokens; ++j) {
#pragma GCC unroll 2
    for (int n = 0; n < kTiles; ++n) m[n][j] = first ? _mm512_setzero_ps() : _mm512_load_ps(state[j].m[n]);
  }
  for (int b = 0; b < in.count; ++b) {
    __m512 w[kTiles];
    for (int n = 0; n < kTiles; ++n) w[n] = _mm512_load_ps(in.scratch.weights[b].m[n]);
#pragma GCC unroll 16
    for (int j = 0; j < kW4Tokens; ++j) {
      const __m512 sum = _mm512_set1_ps(in.block_sum[j * in.blocks + b]);
#pragma GCC unroll 2
      for (int n = 0; n < kTiles; ++n) m[n][j] = _mm512_fmadd_ps(w[n], sum, m[n][j]);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < kW4Tokens; ++j) {
#pragma GCC unroll 2
    for (int n = 0; n < kTiles; ++n) _mm512_store_ps(state[j].m[n], m[n][j]);
  }
}

/// One chunk for kW4Tokens tokens; the outputs with the last.
template <int kTiles>
void w4_chunk(const LinearArgs& args, const W4Chunk& chunk, W4Scratch<kTiles>& scratch,
              typename W4Scratch<kTiles>::State* state) {
  const std::int64_t cols = args.w.cols;
  const std::int64_t blocks = cols / kBlockCols;
  const std::int64_t at = chunk.token * blocks + chunk.first;
  const W4Operands<kTiles> in{.q = args.x.q + at * kBlockCols,
                              .scale = args.x.scale + at,
                              .block_sum = args.x.block_sum + at,
                              .cols = cols,
                              .blocks = blocks,
                              .count = chunk.count,
                              .scratch = scratch};
  w4_begin<kTiles, 0>(in, 0);
  w4_begin<kTiles, 1>(in, 1);
  w4_minima<kTiles>(in, chunk.first == 0, state);
  // Unrolled, every loop over them, so that they are registers.
  __m512 p[kTiles][kW4Tokens];
#pragma GCC unroll 16
  for (int j = 0; j < kW4Tokens; ++j) {
#pragma GCC unroll 2
    for (int n = 0; n < kTiles; ++n) {
      p[n][j] = chunk.first == 0 ? _mm512_setzero_ps() : _mm512_load_ps(state[j].p[n]);
    }
  }
  for (int b = 0; b < chunk.count + 1; b += kW4Slots) {
    w4_step<kTiles, 0>(in, b, p);
    w4_step<kTiles, 1>(in, b + 1, p);
  }
  const bool last = chunk.first + chunk.count == blocks;
#pragma GCC unroll 16
  for (int j = 0; j < kW4Tokens; ++j) {
#pragma GCC unroll 2
    for (int n = 0; n < kTiles; ++n) {
      if (last) {
        store_outputs(args, chunk.tile + n, chunk.token + j,
                      _mm512_add_ps(p[n][j], _mm512_load_ps(state[j].m[n])));
      } else {
        _mm512_store_ps(state[j].p[n], p[n][j]);
      }
    }
  }
}

/// kTiles tiles for the first `tokens` tokens, a multiple of kW4Tokens.
template <int kTiles>
void w4_tokens(const LinearArgs& args, std::int64_t tile, std::int64_t tokens, W4Scratch<kTiles>& scratch) {
  const int blocks = args.w.cols / kBlockCols;
  for (std::int64_t slice = 0; slice < tokens; slice += kSlice) {
    const std::int64_t slice_end = slice + kSlice < tokens ? slice + kSlice : tokens;
    for (int first = 0; first < blocks; first += kChunk) {
      const int count = blocks - first < kChunk ? blocks - first : kChunk;
      w4_unpack<kTiles>(args, {tile, slice, first, count}, scratch);
      for (std::int64_t t = slice; t < slice_end; t += kW4Tokens) {
        w4_chunk<kTiles>(args, {tile, t, first, count}, scratch, scratch.state + (t - slice));
      }
    }
  }
}

inline void w4_tiles(const LinearArgs& args, std::int64_t begin, std::int64_t end, std::int64_t tokens) {
  std::int64_t tile = begin;
  {
    W4Scratch<2> scratch;
    for (; tile + 2 <= end; tile += 2) w4_tokens<2>(args, tile, tokens, scratch);
  }
  if (tile < end) {
    W4Scratch<1> scratch;
    w4_tokens<1>(args, tile, tokens, scratch);
  }
}

}  // namespace
}  // namespace fieldprint::backend::amx
