#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "backend/ops.h"
#include "backend/simd/quantize.h"
#include "exact/format.h"

/// How rope_append writes values. A page's values lie channel by channel, so that one token's are a byte in
/// each of as many cache lines as there are channels. Tokens in a row are put in order first and stored
/// together, a store a channel: threads with neighbouring tokens would tear at these lines with every byte.
namespace fieldprint::backend::simd {
namespace {

inline constexpr std::int64_t kHalfPage = 32;  ///< tokens; exact::value_slot permutes within them
inline constexpr std::int64_t kMaxHeadDim = 256;

inline std::int8_t* page_of(const RopeAppendArgs& args, std::int64_t t, std::int64_t h) {
  return reinterpret_cast<std::int8_t*>(args.kv.pool + args.blocks[t] * args.kv.block_stride +
                                        args.kv.layer_offset + h * page_bytes(args.head_dim));
}

/// How many tokens from t on, before `end`, follow each other in the same half of a page.
inline std::int64_t run_length(const RopeAppendArgs& args, std::int64_t t, std::int64_t end) {
  std::int64_t count = 1;
  while (t + count < end && args.blocks[t + count] == args.blocks[t] &&
         args.slots[t + count] == args.slots[t] + count && args.slots[t + count] % kHalfPage != 0) {
    ++count;
  }
  return count;
}

/// rows: 16 vectors of two rows of 16 bytes; the same bytes with rows and columns exchanged in each half.
/// Four perfect shuffles of 256 bytes rotate the eight bits of a byte's place by four.
inline void transpose(__m256i (&rows)[16]) {
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
    __m256i next[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = _mm256_unpacklo_epi8(rows[i], rows[i + 8]);
      next[2 * i + 1] = _mm256_unpackhi_epi8(rows[i], rows[i + 8]);
    }
    std::memcpy(rows, next, sizeof rows);
  }
}

/// A run of tokens and one KV head.
struct ValueRun {
  std::int64_t first;
  std::int64_t count;
  std::int64_t head;
};

/// Levels(args, token, head, out) gives a value's levels, channels in a row. Store, made from a mask of the
/// half page's tokens in their order there, writes those of 32 bytes.
template <class Store, class Levels>
void append_values(const RopeAppendArgs& args, const ValueRun& run, Levels levels) {
  const std::int64_t dim = args.head_dim;
  std::int8_t* values = page_of(args, run.first, run.head) + exact::kPageTokens * dim;
  alignas(64) std::int8_t tokens[kHalfPage * kMaxHeadDim];
  if (run.count == 1) {
    levels(args, run.first, run.head, tokens);
    values += value_slot(args.slots[run.first]);
    for (std::int64_t i = 0; i < dim; ++i) values[i * exact::kPageTokens] = tokens[i];
    return;
  }
  if (run.count < kHalfPage) std::memset(tokens, 0, static_cast<std::size_t>(kHalfPage * dim));
  std::uint32_t present = 0;
  for (std::int64_t t = run.first; t < run.first + run.count; ++t) {
    const std::int64_t place = value_slot(args.slots[t]) % kHalfPage;
    present |= 1U << place;
    levels(args, t, run.head, tokens + place * dim);
  }
  const Store store{present};
  values += args.slots[run.first] / kHalfPage * kHalfPage;
  for (std::int64_t channel = 0; channel < dim; channel += 16) {
    __m256i rows[16];
    for (std::int64_t j = 0; j < 16; ++j) {
      const auto* low = reinterpret_cast<const __m128i*>(tokens + j * dim + channel);
      const auto* high = reinterpret_cast<const __m128i*>(tokens + (j + 16) * dim + channel);
      rows[j] =
          _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(low)), _mm_loadu_si128(high), 1);
    }
    transpose(rows);
    for (std::int64_t i = 0; i < 16; ++i) store(values + (channel + i) * exact::kPageTokens, rows[i]);
  }
}

/// Tokens begin … end, run by run. Appender::begin makes a token's Turn; Appender::kQuery and Appender::kKey
/// append what stands in its row, head by head; the values of a run follow its keys.
template <class Appender>
void append_rows(const RopeAppendArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t dim = args.head_dim;
  typename Appender::Turn turn;
  std::int64_t count = 0;
  for (std::int64_t run = begin; run < end; run += count) {
    count = run_length(args, run, end);
    for (std::int64_t t = run; t < run + count; ++t) {
      Appender::begin(args, t, turn);
      const float* row = args.qkv + t * (args.heads + 2 * args.kv_heads) * dim;
      for (std::int64_t h = 0; h < args.heads; ++h) Appender::kQuery(args, t, h, row + h * dim, turn);
      for (std::int64_t h = 0; h < args.kv_heads; ++h) {
        Appender::kKey(args, t, h, row + (args.heads + h) * dim, turn);
      }
    }
    for (std::int64_t h = 0; h < args.kv_heads; ++h) {
      append_values<typename Appender::Store>(args, {run, count, h}, Appender::kValueLevels);
    }
  }
}

}  // namespace
}  // namespace fieldprint::backend::simd
