#pragma once

#include <cstdint>

/// Constants of the numeric contract canon-0. Plain enough for the ISA folders, which include it beside
/// their intrinsics. CANON.md is the same contract in words; where the two disagree, the vectors decide.
namespace fieldprint::exact {

inline constexpr char kCanonVersion[] = "canon-0";

// Layout of packed linear weights: 16 output rows share a tile, four columns a lane.
inline constexpr int kTileRows = 16;
inline constexpr int kLaneCols = 4;
inline constexpr int kBlockCols = 32;  ///< columns of one w4g32 block
inline constexpr int kW4TileBlockBytes = kTileRows * kBlockCols / 2 + kTileRows * 4;  ///< 320: nibbles, d, m

// Quantisers.
inline constexpr float kA8Max = 127.0F;
inline constexpr float kA16Max = 32512.0F;  ///< 127·256: both balanced digits fit in int8
inline constexpr float kMaxFloat = 3.402823466e38F;
inline constexpr float kSmallestAmax =
    0x1p-100F;  ///< rows below are zero rows: their reciprocal would overflow

// Attention.
inline constexpr int kPageTokens = 64;  ///< tile = page
inline constexpr int kChunkTiles = 8;   ///< 512 tokens
inline constexpr int kGroupTiles = 32;  ///< 2,048 tokens
inline constexpr float kWeightMax =
    65535.0F;  ///< attention weights are 16-bit, relative to their tile's largest
inline constexpr float kSmallestWeight =
    0x1p-110F;  ///< a tile whose largest weight lies below has output 0: its reciprocal would overflow
inline constexpr float kDenominatorOne = 0x1p23F;
inline constexpr float kMagic23 = 0x1p23F;  ///< fma(x, y, 2^23) leaves round(x·y) in its low 23 bits
inline constexpr std::uint32_t kMagic23Bits = 0x4B000000U;

// exp2: argument clamp, round-to-nearest constant, and the polynomial of 2^f on [-1/2, 1/2].
inline constexpr float kExp2Limit = 120.0F;
inline constexpr float kRoundMagic = 0x1.8p23F;
inline constexpr float kExp2C1 = 0x1.62e42ap-1F;
inline constexpr float kExp2C2 = 0x1.ebf9bcp-3F;
inline constexpr float kExp2C3 = 0x1.c6b752p-5F;
inline constexpr float kExp2C4 = 0x1.3cea88p-7F;
inline constexpr float kExp2C5 = 0x1.5bba18p-10F;

inline constexpr float kLog2E = 0x1.715476p+0F;
inline constexpr float kGeluLinear = 0x1.26aec2p+1F;  ///< 2·sqrt(2/pi)·log2(e) = 2.3022082
inline constexpr float kGeluCubic = 0x1.a5a7d0p-4F;   ///< the same times 0.044715 = 0.10294324

// Rotary tables are factored: position = 256·high + low.
inline constexpr int kRopeLow = 256;

// Sampling: probabilities are integers in units of 2^-30 of the largest.
inline constexpr float kProbabilityOne = 0x1p30F;

}  // namespace fieldprint::exact
