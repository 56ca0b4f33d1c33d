#include "exact/arith.h"

#include "base/check.h"

namespace fieldprint::exact {

double log2_of(std::uint64_t x) {
  CHECK(x > 0, "log2 of zero");
  int exponent = 63 - std::countl_zero(x);
  // m in [1, 2); both halves of the division are exact up to binary64's own rounding of x.
  double m = static_cast<double>(x) / static_cast<double>(std::uint64_t{1} << exponent);
  if (m > 1.4142135623730951) {
    m /= 2.0;
    ++exponent;
  }
  // ln(m) = 2·atanh(t), t = (m-1)/(m+1), |t| ≤ 0.172: the series to t^19 leaves less than 1e-16.
  const double t = (m - 1.0) / (m + 1.0);
  const double t2 = t * t;
  double series = 0.0;
  for (int k = 19; k >= 1; k -= 2) series = series * t2 + 1.0 / k;
  return exponent + 2.0 * t * series * 1.4426950408889634;
}

}  // namespace fieldprint::exact
