#pragma once

#include <cstdint>

/// Constants of the numeric contract canon-1. Plain enough for the ISA folders, which include it beside
/// their intrinsics. CANON.md is the same contract in words; where the two disagree, the vectors decide.
namespace fieldprint::exact {

inline constexpr char kCanonVersion[] = "canon-1";

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

// Queries, keys and values.
inline constexpr float kQueryLevels = 0x1.020408p+15F;  ///< 2^22/127: largest magnitude to query step
inline constexpr int kSmallestStep = 16;  ///< in units of 2^-22; a clamped score has weight 0 from here on
inline constexpr int kLargestStep = 1 << 22;  ///< 8207 − 3·step is an exact float up to here
inline constexpr float kStepUnit = 0x1p-22F;  ///< log2 units that a score of 1 stands for, times the step

// Attention.
inline constexpr int kPageTokens = 64;
inline constexpr int kTilePages = 2;
inline constexpr int kTileTokens = kPageTokens * kTilePages;
inline constexpr int kChunkTiles = 4;  ///< 512 tokens
inline constexpr int kScoreSpan =
    3 << 24;  ///< over the step: how far below the maximum a score is clamped, 12 in log2
inline constexpr float kScoreMagic = 0x1.8p23F;  ///< its bits plus a score are a float of that score
inline constexpr float kExponentBase =
    8207.0F;  ///< 2^13 + 15: the low half of base + x are the bits of the half near 2^x
inline constexpr int kExponentOne = 15 << 10;  ///< bits of the half 1
inline constexpr float kWeightC2 = 57.59375F;  ///< 254.67·2^f/(1+f) ≈ (C2·u + C1)·u + C0, u = 1 + f; halves
inline constexpr float kWeightC1 = -172.125F;
inline constexpr float kWeightC0 = 368.5F;
inline constexpr int kLargestWeight = 254;     ///< of the largest score of a tile
inline constexpr float kFoldHeadroom = 20.0F;  ///< log2: a part's maximum may exceed the reference by so much
inline constexpr float kMagic23 = 0x1p23F;     ///< fma(x, y, 2^23) leaves round(x·y) in its low 23 bits
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
