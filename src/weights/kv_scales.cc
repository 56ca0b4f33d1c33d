#include "weights/kv_scales.h"

#include <algorithm>
#include <cmath>

#include "base/bounds.h"
#include "base/check.h"

namespace fieldprint::weights {

std::vector<float> kv_scale_section(const KvCalibration& calibration, float score_scale) {
  const std::size_t channels = calibration.k_offset.size();
  CHECK(calibration.k_scale.size() == channels && calibration.v_scale.size() == channels);
  std::vector<float> out = calibration.k_offset;
  out.reserve(5 * channels + 2 * calibration.sink_factor.size());
  for (const float scale : calibration.k_scale) out.push_back(1.0F / scale);
  for (const float scale : calibration.k_scale) out.push_back(scale * score_scale);
  for (const float scale : calibration.v_scale) out.push_back(1.0F / scale);
  out.insert(out.end(), calibration.v_scale.begin(), calibration.v_scale.end());
  static_assert(backend::kSinkKeyInverse == 0 && backend::kSinkKeyScale == 1 &&
                backend::kSinkValueInverse == 2 && backend::kSinkValueScale == 3);
  for (const float factor : calibration.sink_factor) {
    out.push_back(1.0F / factor);
    out.push_back(factor);
  }
  return out;
}

KvCalibration unit_kv_calibration(std::int64_t kv_heads, std::int64_t head_dim) {
  const auto channels = static_cast<std::size_t>(kv_heads * head_dim);
  return {.k_offset = std::vector<float>(channels, 0.0F),
          .k_scale = std::vector<float>(channels, 1.0F),
          .v_scale = std::vector<float>(channels, 1.0F),
          .sink_factor = std::vector<float>(static_cast<std::size_t>(2 * kv_heads), 1.0F)};
}

bool kv_scales_fit(std::span<const float> section, std::int64_t kv_heads, std::int64_t head_dim) {
  const std::span<const float> offsets = section.first(static_cast<std::size_t>(kv_heads * head_dim));
  const std::span<const float> scales = section.subspan(offsets.size());
  return std::all_of(offsets.begin(), offsets.end(), [](float x) { return std::isfinite(x); }) &&
         std::all_of(scales.begin(), scales.end(),
                     [](float x) { return x >= bounds::kMinKvScale && x <= bounds::kMaxKvScale; });
}

backend::KvScales kv_scales_of(const float* section, std::int64_t kv_heads, std::int64_t head_dim) {
  const std::int64_t channels = kv_heads * head_dim;
  return {.k_offset = section,
          .k_inverse = section + channels,
          .q_factor = section + 2 * channels,
          .v_inverse = section + 3 * channels,
          .v_scale = section + 4 * channels,
          .sink = section + 5 * channels};
}

}  // namespace fieldprint::weights
