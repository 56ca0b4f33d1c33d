#include "weights/rope_table.h"

#include <array>
#include <bit>

#include "base/check.h"
#include "exact/format.h"

namespace fieldprint::weights {
namespace {

// ln 2 and pi/2 in parts whose leading bits are few enough for k·part to be exact (W. J. Cody and W. Waite,
// "Software Manual for the Elementary Functions", 1980): 32 bits of ln 2, twice 33 bits of pi/2.
constexpr double kLn2High = 0x1.62e42feep-1;
constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
constexpr double kInverseLn2 = 0x1.71547652b82fep+0;
constexpr double kHalfPi1 = 0x1.921fb544p+0;
constexpr double kHalfPi2 = 0x1.0b4611a6p-34;
constexpr double kHalfPi3 = 0x1.3198a2e037073p-69;
constexpr double kTwoOverPi = 0x1.45f306dc9c883p-1;
constexpr double kSqrtHalf = 0x1.6a09e667f3bcdp-1;
constexpr double kMaxAngle = 0x1p20;

/// ln x of a positive normal number: x = m·2^e, ln m = 2·artanh((m−1)/(m+1)).
double natural_log(double x) {
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(x);
  int exponent = static_cast<int>((bits >> 52) & 0x7FF) - 1022;
  double m = std::bit_cast<double>((bits & 0x000FFFFFFFFFFFFFULL) | 0x3FE0000000000000ULL);
  if (m < kSqrtHalf) {
    m *= 2.0;
    --exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double square = s * s;
  double series = 0.0;
  for (int n = 27; n >= 3; n -= 2) series = (series + 1.0 / n) * square;
  const double e = exponent;
  return e * kLn2High + (e * kLn2Low + 2.0 * (s + s * series));
}

/// e^y for −700 < y < 700: y = k·ln 2 + r, the Taylor series of e^r for |r| ≤ ln(2)/2, times 2^k.
double exponential(double y) {
  const double scaled = y * kInverseLn2;
  const int k = static_cast<int>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
  const double r = (y - k * kLn2High) - k * kLn2Low;
  double series = 1.0;
  for (int n = 16; n >= 1; --n) series = 1.0 + series * r / n;
  return series * std::bit_cast<double>(static_cast<std::uint64_t>(1023 + k) << 52);
}

/// Taylor series for |r| ≤ pi/4.
double sin_series(double r) {
  const double square = r * r;
  double series = 0.0;
  for (int n = 19; n >= 3; n -= 2) series = (1.0 + series) * (-square / (n * (n - 1)));
  return r + r * series;
}

double cos_series(double r) {
  const double square = r * r;
  double series = 0.0;
  for (int n = 20; n >= 2; n -= 2) series = (1.0 + series) * (-square / (n * (n - 1)));
  return 1.0 + series;
}

}  // namespace

std::vector<double> rope_frequencies(double base, std::int32_t head_dim) {
  CHECK(base > 1.0 && base < 0x1p100 && head_dim > 0 && head_dim % 2 == 0);
  const double log_base = natural_log(base);
  std::vector<double> out;
  for (std::int32_t i = 0; i < head_dim / 2; ++i) {
    out.push_back(i == 0 ? 1.0 : exponential(-(2.0 * i / head_dim) * log_base));
  }
  return out;
}

CosSin cos_sin(double angle) {
  CHECK(angle >= 0.0 && angle <= kMaxAngle);
  const double rounded = angle * kTwoOverPi + 0.5;
  const auto quarter = static_cast<std::int64_t>(rounded);
  const auto k = static_cast<double>(quarter);
  const double r = ((angle - k * kHalfPi1) - k * kHalfPi2) - k * kHalfPi3;
  const double c = cos_series(r);
  const double s = sin_series(r);
  switch (quarter % 4) {
    case 0:
      return {c, s};
    case 1:
      return {-s, c};
    case 2:
      return {-c, -s};
    default:
      return {s, -c};
  }
}

std::vector<float> rope_table(std::span<const double> frequencies, std::int32_t high_rows) {
  const std::size_t pairs = frequencies.size();
  std::vector<float> out;
  out.reserve(2 * pairs * static_cast<std::size_t>(high_rows + exact::kRopeLow));
  const auto append = [&](std::int32_t rows, std::int32_t stride) {
    const std::size_t begin = out.size();
    const std::size_t size = static_cast<std::size_t>(rows) * pairs;
    out.resize(begin + 2 * size);
    for (std::int32_t row = 0; row < rows; ++row) {
      for (std::size_t i = 0; i < pairs; ++i) {
        const CosSin turn = cos_sin(static_cast<double>(row) * stride * frequencies[i]);
        const std::size_t at = begin + static_cast<std::size_t>(row) * pairs + i;
        out[at] = static_cast<float>(turn.cos);
        out[at + size] = static_cast<float>(turn.sin);
      }
    }
  };
  append(high_rows, exact::kRopeLow);
  append(exact::kRopeLow, 1);
  return out;
}

}  // namespace fieldprint::weights
