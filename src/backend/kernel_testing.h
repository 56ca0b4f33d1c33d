#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "backend/instruction_sets.h"
#include "backend/ops.h"
#include "exact/format.h"

/// What the differential tests and benchmarks of the kernels share: data to run them on, and comparison.
namespace fieldprint::backend::testing {

using Random = std::mt19937_64;

inline bool cpu_has_avx2() { return avx2_obstacle().empty(); }
inline bool cpu_has_avx512() { return avx512_obstacle().empty(); }
inline bool cpu_has_sha_ni() { return sha_ni_obstacle().empty(); }
inline bool cpu_has_amx() { return amx_obstacle().empty(); }

/// A number in [low, high].
inline std::int64_t pick(Random& random, std::int64_t low, std::int64_t high) {
  return low + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(high - low + 1));
}

/// A float in (-1, 1).
inline float unit_float(Random& random) {
  return static_cast<float>(pick(random, -(1 << 23) + 1, (1 << 23) - 1)) * 0x1p-23F;
}

/// What a row of test data looks like.
enum class Values { kOrdinary, kOutlier, kTiny, kHuge, kZero, kTies, kAnyBits, kInfinite, kNan };
inline constexpr int kValueKinds = 9;

inline float any_bits(Random& random) { return std::bit_cast<float>(static_cast<std::uint32_t>(random())); }

inline float value_of(Values kind, Random& random) {
  switch (kind) {
    case Values::kOrdinary:
      return unit_float(random);
    case Values::kOutlier:
      return unit_float(random) * (random() % 64 == 0 ? 1000.0F : 0.01F);
    case Values::kTiny:  // around the smallest row that is not taken for zero, denormals included
      return unit_float(random) * (random() % 2 == 0 ? 0x1p-100F : 0x1p-130F);
    case Values::kHuge:
      return unit_float(random) * exact::kMaxFloat;
    case Values::kZero:
      return random() % 2 == 0 ? 0.0F : -0.0F;
    case Values::kTies:  // with a largest magnitude of 127, every other value is a tie
      return static_cast<float>(pick(random, -254, 254)) * 0.5F;
    case Values::kAnyBits:
      return any_bits(random);
    case Values::kInfinite:
      return random() % 32 == 0 ? std::numeric_limits<float>::infinity() : -unit_float(random);
    case Values::kNan:
      return random() % 32 == 0 ? std::numeric_limits<float>::quiet_NaN() : unit_float(random);
  }
  return 0.0F;
}

/// [rows][cols], each row of a kind of its own.
inline std::vector<float> random_rows(std::int64_t rows, std::int64_t cols, Random& random) {
  std::vector<float> x;
  x.reserve(static_cast<std::size_t>(rows * cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto kind = static_cast<Values>(random() % kValueKinds);
    for (std::int64_t c = 0; c < cols; ++c) x.push_back(value_of(kind, random));
  }
  return x;
}

inline std::vector<float> floats_of(Values kind, std::int64_t size, Random& random) {
  std::vector<float> x(static_cast<std::size_t>(size));
  for (float& value : x) value = value_of(kind, random);
  return x;
}

/// Storage of QuantRows for `tokens` rows, of exactly the size that the format defines.
struct QuantStorage {
  QuantStorage(ActivationFormat row_format, std::int64_t tokens, std::int64_t row_cols)
      : format(row_format), cols(static_cast<std::int32_t>(row_cols)) {
    const std::int64_t digits = format == ActivationFormat::kA16 ? 2 : 1;
    const std::int64_t blocks = format == ActivationFormat::kA8G32 ? cols / exact::kBlockCols : 0;
    q.resize(static_cast<std::size_t>(tokens * digits * cols));
    scale.resize(static_cast<std::size_t>(blocks > 0 ? tokens * blocks : tokens));
    row_sum.resize(static_cast<std::size_t>(blocks > 0 ? 0 : tokens * digits));
    block_sum.resize(static_cast<std::size_t>(tokens * blocks));
    non_finite.resize(static_cast<std::size_t>(tokens));
  }

  QuantRows view() {
    return {format, cols, q.data(), scale.data(), row_sum.data(), block_sum.data(), non_finite.data()};
  }

  ActivationFormat format;
  std::int32_t cols;
  std::vector<std::int8_t> q;
  std::vector<float> scale;
  std::vector<std::int32_t> row_sum;
  std::vector<float> block_sum;
  std::vector<std::int32_t> non_finite;
};

/// Memory as aligned as a model file's tensors are.
struct alignas(64) CacheLine {
  std::uint8_t bytes[64];
};

/// Storage of a PackedWeight, of exactly the size that the format defines: a multiple of 64 bytes.
struct WeightStorage {
  LinearFormat format;
  ActivationFormat activation;
  std::int32_t rows;
  std::int32_t cols;
  std::vector<CacheLine> lines;
  std::vector<float> row_scale;

  std::uint8_t* data() { return lines.front().bytes; }
  std::int64_t bytes() const { return static_cast<std::int64_t>(lines.size() * sizeof(CacheLine)); }
  PackedWeight view() const {
    return {format, activation, rows, cols, lines.front().bytes, row_scale.data()};
  }
};

/// A half in ±2^-7, or with `any_half` any 16 bits: denormals, infinities and NaN among them.
inline std::uint16_t random_half(bool any_half, Random& random) {
  if (any_half) return static_cast<std::uint16_t>(random());
  return static_cast<std::uint16_t>((random() & 0x83FFU) |
                                    (static_cast<std::uint64_t>(pick(random, 1, 8)) << 10));
}

inline WeightStorage random_weight(ActivationFormat activation, std::int64_t rows, std::int64_t cols,
                                   bool any_half, Random& random) {
  const bool w4 = activation == ActivationFormat::kA8G32;
  const std::int64_t tiles = (rows + exact::kTileRows - 1) / exact::kTileRows;
  const std::int64_t blocks = tiles * cols / exact::kBlockCols;
  WeightStorage w{w4 ? LinearFormat::kW4G32 : LinearFormat::kW8R,
                  activation,
                  static_cast<std::int32_t>(rows),
                  static_cast<std::int32_t>(cols),
                  {},
                  {}};
  const std::int64_t bytes = w4 ? blocks * exact::kW4TileBlockBytes : tiles * exact::kTileRows * cols;
  w.lines.resize(static_cast<std::size_t>(bytes) / sizeof(CacheLine));
  for (CacheLine& line : w.lines) {
    for (std::uint8_t& byte : line.bytes) byte = static_cast<std::uint8_t>(random());
  }
  if (!w4) {
    w.row_scale.resize(static_cast<std::size_t>(tiles * exact::kTileRows));
    for (float& scale : w.row_scale) scale = unit_float(random) * 0.01F;
    return w;
  }
  for (std::int64_t b = 0; b < blocks; ++b) {
    std::uint8_t* coefficients = w.data() + b * exact::kW4TileBlockBytes + 256;
    for (std::int64_t i = 0; i < 2 * exact::kTileRows; ++i) {
      const std::uint16_t half = random_half(any_half, random);
      std::memcpy(coefficients + 2 * i, &half, sizeof half);
    }
  }
  return w;
}

/// Index of the first float that differs in its bits, two NaNs counting as the same; -1 if none does.
inline std::int64_t first_difference(const std::vector<float>& a, const std::vector<float>& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    const bool same = std::bit_cast<std::uint32_t>(a[i]) == std::bit_cast<std::uint32_t>(b[i]);
    if (!same && !(std::isnan(a[i]) && std::isnan(b[i]))) return static_cast<std::int64_t>(i);
  }
  return -1;
}

}  // namespace fieldprint::backend::testing
