#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "sampler/philox.h"

/// Inputs of the golden vectors: integers from Philox4x32-10, and floats made of them without rounding, so
/// that neither libm nor a library's distributions have a say in them.
namespace fieldprint::vectors {

/// A stream of 64-bit integers: number i of seed s is philox(s, i).
class Source {
 public:
  explicit Source(std::uint64_t seed) : seed_(seed) {}
  /// The stream of (a, b) under `seed`.
  Source(std::uint64_t seed, std::uint64_t a, std::uint64_t b)
      : seed_(sampler::philox(sampler::philox(seed, a), b)) {}

  std::uint64_t next() { return sampler::philox(seed_, position_++); }
  /// In [0, limit).
  std::uint64_t below(std::uint64_t limit) { return next() % limit; }
  /// In [low, high].
  std::int64_t between(std::int64_t low, std::int64_t high) {
    return low + static_cast<std::int64_t>(below(static_cast<std::uint64_t>(high - low + 1)));
  }
  /// A multiple of 2^-23 in (-1, 1).
  float unit() { return static_cast<float>(between(-(1 << 23) + 1, (1 << 23) - 1)) * 0x1p-23F; }
  /// In -127…127.
  std::int8_t digit() { return static_cast<std::int8_t>(between(-127, 127)); }

 private:
  std::uint64_t seed_;
  std::uint64_t position_ = 0;
};

/// What a row of input looks like.
enum class RowKind {
  kOrdinary,  ///< in (-1, 1)
  kOutlier,   ///< one in 64 is 10^5 times larger than the others
  kTiny,      ///< around the smallest row that is not taken for zero, denormals among them
  kHuge,      ///< up to the largest float
  kZero,      ///< zeros of both signs
  kTies,      ///< largest magnitude 127, so that every other value is a tie when quantised to 8 bits
  kInfinite,  ///< infinities among ordinary values
  kNan,       ///< NaN among ordinary values
};
inline constexpr int kFiniteRowKinds = 6;
inline constexpr int kRowKinds = 8;

float value_of(RowKind kind, Source& source);
/// [rows][cols]; row r is of kind r % kinds.
std::vector<float> rows_of_kinds(std::int64_t rows, std::int64_t cols, int kinds, Source& source);
/// Values in (-scale, scale).
std::vector<float> floats(std::int64_t count, float scale, Source& source);
std::vector<std::uint8_t> bytes(std::size_t count, Source& source);

}  // namespace fieldprint::vectors
