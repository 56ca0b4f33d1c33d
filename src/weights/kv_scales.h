#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/ops.h"

namespace fieldprint::weights {

/// What calibration chooses for the keys and values of one layer.
struct KvCalibration {
  std::vector<float> k_offset;     ///< [K][D], subtracted from the rotated key
  std::vector<float> k_scale;      ///< [K][D], of one level of a key's channel
  std::vector<float> v_scale;      ///< [K][D]
  std::vector<float> sink_factor;  ///< [K][2], on the scales of key and value at position 0
};

/// The scales of one layer as a model file stores them: float k_offset, k_inverse, q_factor, v_inverse,
/// v_scale [K][D], then sink [K][4], as in backend::KvScales. Inverses are 1/scale, q_factor is
/// k_scale·score_scale.
std::vector<float> kv_scale_section(const KvCalibration& calibration, float score_scale);

/// Offset 0, and 1 for every scale and factor.
KvCalibration unit_kv_calibration(std::int64_t kv_heads, std::int64_t head_dim);

constexpr std::int64_t kv_scale_columns(std::int64_t head_dim) { return 5 * head_dim + 4; }

/// Whether the offsets are finite, and all scales, inverses and factors within bounds::kMinKvScale and
/// kMaxKvScale.
bool kv_scales_fit(std::span<const float> section, std::int64_t kv_heads, std::int64_t head_dim);

/// The parts of such a section, [K][kv_scale_columns(D)] floats.
backend::KvScales kv_scales_of(const float* section, std::int64_t kv_heads, std::int64_t head_dim);

}  // namespace fieldprint::weights
