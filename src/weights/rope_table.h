#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fieldprint::weights {

/// base^(−2i/D) for i in 0..D/2, the angle by which pair i turns at each position, radians. Computed in
/// binary64 with add, mul and div only, so that it is the same on every machine; relative error under 1e-14.
/// base > 1, D even.
std::vector<double> rope_frequencies(double base, std::int32_t head_dim);

/// cos and sin of `angle` radians, 0 ≤ angle ≤ 2^20; absolute error under 1e-15.
struct CosSin {
  double cos;
  double sin;
};
CosSin cos_sin(double angle);

/// The factored tables of backend::RopeTable in one block: high_cos, high_sin [high_rows][pairs], low_cos,
/// low_sin [256][pairs]; row h of the high tables turns by 256·h positions. Each entry is rounded once, to
/// binary32.
std::vector<float> rope_table(std::span<const double> frequencies, std::int32_t high_rows);

}  // namespace fieldprint::weights
