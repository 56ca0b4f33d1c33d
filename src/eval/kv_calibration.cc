#include "eval/kv_calibration.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "core/block_layout.h"
#include "eval/window_runner.h"
#include "exact/arith.h"
#include "model/model.h"

namespace fieldprint::eval {
namespace {

// Other texts reach further than the calibration text.
constexpr double kHeadroom = 1.5;
constexpr double kSinkHeadroom = 1.25;  ///< of what stands at position 0
// The least scale of a channel, as a share of the largest of its head: small channels count little, and
// other texts exceed them first.
constexpr double kFloor = 0.125;
// Scale of a channel in which nothing was seen, likewise: small, so that queries do not waste levels on it.
constexpr double kUnseen = 0x1p-10;
// Neighbouring turns of an arc below a full circle are less than 6 degrees apart: 0.15 % of the amplitude.
constexpr std::int32_t kArcSteps = 64;
constexpr double kSmallestScale = 0x1p-40;
constexpr double kLargestScale = 0x1p40;
constexpr double kLevels = 127.0;

ContextTurns::Turn turn_at(const backend::RopeTable& rope, std::int64_t position, std::int64_t half,
                           std::int64_t i) {
  const std::int64_t high = position / exact::kRopeLow * half + i;
  const std::int64_t low = position % exact::kRopeLow * half + i;
  const double ch = static_cast<double>(rope.high_cos[high]);
  const double sh = static_cast<double>(rope.high_sin[high]);
  const double cl = static_cast<double>(rope.low_cos[low]);
  const double sl = static_cast<double>(rope.low_sin[low]);
  return {ch * cl - sh * sl, sh * cl + ch * sl};
}

using Vectors = std::vector<std::vector<double>>;

/// A key before its rotation, or a value.
std::vector<double> head_of(std::span<const float> x, const float* norm, float epsilon) {
  const float factor = norm != nullptr ? exact::inverse_rms(x, epsilon) : 1.0F;
  std::vector<double> out;
  for (std::size_t d = 0; d < x.size(); ++d) {
    out.push_back(static_cast<double>(norm != nullptr ? (x[d] * factor) * norm[d] : x[d]));
  }
  return out;
}

float in_range(double scale) { return static_cast<float>(std::clamp(scale, kSmallestScale, kLargestScale)); }

/// Scales of the channels of one head that reach to `ranges`.
std::vector<float> scales_of(const std::vector<double>& ranges) {
  const double largest = *std::max_element(ranges.begin(), ranges.end());
  std::vector<float> out;
  for (const double range : ranges) {
    const double held = range > 0 ? std::max(range, kFloor * largest) : kUnseen * largest;
    out.push_back(largest > 0 ? in_range(held * kHeadroom / kLevels) : 1.0F);
  }
  return out;
}

/// The factor with which `scales` hold the sinks' channels, which are `offsets` (if any) off.
float sink_factor(const Vectors& sinks, const std::vector<float>& scales, const float* offsets) {
  double most = 0;
  for (const std::vector<double>& sink : sinks) {
    for (std::size_t d = 0; d < sink.size(); ++d) {
      const double x = sink[d] - (offsets != nullptr ? static_cast<double>(offsets[d]) : 0.0);
      most = std::max(most, std::abs(x) / (kLevels * static_cast<double>(scales[d])));
    }
  }
  return most > 0 ? in_range(most * kSinkHeadroom) : 1.0F;
}

/// The mean rotated key over all positions of the context: the mean key, turned by the mean rotation.
/// Channels that turn fast get an offset near zero, slow ones keep theirs.
std::vector<float> offsets_of(const Vectors& keys, const ContextTurns& turns, std::size_t half) {
  std::vector<double> mean(2 * half, 0.0);
  for (const std::vector<double>& key : keys) {
    for (std::size_t d = 0; d < mean.size(); ++d) mean[d] += key[d] / static_cast<double>(keys.size());
  }
  std::vector<float> out(2 * half);
  for (std::size_t i = 0; i < half; ++i) {
    const ContextTurns::Turn& turn = turns.pair(i).mean;
    out[i] = static_cast<float>(mean[i] * turn.cos - mean[i + half] * turn.sin);
    out[i + half] = static_cast<float>(mean[i + half] * turn.cos + mean[i] * turn.sin);
  }
  // Rows that are not finite are noticed by the pass itself.
  for (float& offset : out) offset = std::isfinite(offset) ? offset : 0.0F;
  return out;
}

/// How far the channels get from their offsets, whatever the tokens' positions.
std::vector<double> key_ranges(const Vectors& keys, const std::vector<float>& offsets,
                               const ContextTurns& turns, std::size_t half) {
  std::vector<double> ranges(2 * half, 0.0);
  for (std::size_t i = 0; i < half; ++i) {
    const ContextTurns::Pair& pair = turns.pair(i);
    const double off_a = static_cast<double>(offsets[i]);
    const double off_b = static_cast<double>(offsets[i + half]);
    double& range_a = ranges[i];
    double& range_b = ranges[i + half];
    for (const std::vector<double>& key : keys) {
      const double a = key[i];
      const double b = key[i + half];
      if (pair.round) {
        const double amplitude = std::sqrt(a * a + b * b);
        range_a = std::max(range_a, amplitude + std::abs(off_a));
        range_b = std::max(range_b, amplitude + std::abs(off_b));
      }
      for (const ContextTurns::Turn& turn : pair.arc) {
        range_a = std::max(range_a, std::abs(a * turn.cos - b * turn.sin - off_a));
        range_b = std::max(range_b, std::abs(b * turn.cos + a * turn.sin - off_b));
      }
    }
  }
  return ranges;
}

std::vector<double> value_ranges(const Vectors& values, std::size_t dim) {
  std::vector<double> ranges(dim, 0.0);
  for (const std::vector<double>& value : values) {
    for (std::size_t d = 0; d < dim; ++d) ranges[d] = std::max(ranges[d], std::abs(value[d]));
  }
  return ranges;
}

/// Several sequences in one step, each in blocks of its own.
class Batch {
 public:
  Batch(const weights::ModelFile& file, backend::Backend& backend,
        std::span<const std::vector<std::int32_t>> sequences)
      : spec_(file.spec()),
        block_bytes_(std::int64_t{spec_.layers} * spec_.kv_heads * backend::page_bytes(spec_.head_dim)) {
    std::int32_t next = 0;
    for (const std::vector<std::int32_t>& tokens : sequences) {
      std::vector<std::int32_t>& table = tables_.emplace_back();
      const auto count = static_cast<std::int32_t>(tokens.size());
      while (static_cast<std::int64_t>(table.size()) < core::BlockLayout{}.blocks_for(count)) {
        table.push_back(next++);
      }
      for (std::int32_t p = 0; p < count; ++p) positions_.push_back(p);
    }
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      slices_.push_back({.tokens = sequences[i],
                         .blocks = tables_[i].data(),
                         .ceiling_odds = std::numeric_limits<float>::infinity()});
    }
    pages_ = std::make_unique<model::DeviceArray<std::uint8_t>>(backend, next * block_bytes_);
    backend.clear(pages_->data(), pages_->bytes());
    model_ = std::make_unique<model::Model>(file, backend, static_cast<std::int32_t>(positions_.size()));
  }

  model::Model& model() { return *model_; }
  std::span<const std::int32_t> positions() const { return positions_; }
  /// Whether every activation was finite.
  bool forward() {
    const std::vector<bool> finite = model_->forward(slices_, {pages_->data(), block_bytes_});
    return std::find(finite.begin(), finite.end(), false) == finite.end();
  }

 private:
  const weights::ModelSpec& spec_;
  std::int64_t block_bytes_;
  std::vector<std::vector<std::int32_t>> tables_;
  std::vector<std::int32_t> positions_;
  std::vector<model::SequenceSlice> slices_;
  std::unique_ptr<model::DeviceArray<std::uint8_t>> pages_;
  std::unique_ptr<model::Model> model_;
};

}  // namespace

ContextTurns::ContextTurns(const backend::RopeTable& rope, std::int32_t context, std::int32_t head_dim)
    : pairs_(static_cast<std::size_t>(head_dim / 2)) {
  const std::int64_t half = head_dim / 2;
  for (std::int64_t i = 0; i < half; ++i) {
    Pair& pair = pairs_[static_cast<std::size_t>(i)];
    bool past_half = false;
    for (std::int32_t p = 0; p < context; ++p) {
      const Turn turn = turn_at(rope, p, half, i);
      pair.mean.cos += turn.cos / context;
      pair.mean.sin += turn.sin / context;
      // A position turns by at most one radian, so no quadrant is passed over.
      if (turn.sin < 0) past_half = true;
      if (past_half && turn.sin >= 0 && turn.cos > 0) pair.round = true;
    }
    if (pair.round) continue;
    for (std::int64_t step = 0; step <= kArcSteps; ++step) {
      pair.arc.push_back(turn_at(rope, step * (context - 1) / kArcSteps, half, i));
    }
  }
}

weights::KvCalibration measure_layer(const weights::ModelSpec& spec, const weights::LayerWeights& layer,
                                     const ContextTurns& turns, const LayerRows& rows) {
  const std::size_t dim = static_cast<std::size_t>(spec.head_dim);
  const std::size_t kv_heads = static_cast<std::size_t>(spec.kv_heads);
  const std::size_t heads = static_cast<std::size_t>(spec.heads);
  const auto append = [](std::vector<float>& all, const std::vector<float>& head) {
    all.insert(all.end(), head.begin(), head.end());
  };
  weights::KvCalibration out;
  for (std::size_t h = 0; h < kv_heads; ++h) {
    Vectors keys, values, sink_keys, sink_values;
    for (std::size_t t = 0; t < rows.positions.size(); ++t) {
      const auto row = rows.qkv.subspan(t * (heads + 2 * kv_heads) * dim);
      const bool sink = rows.positions[t] == 0;  // where nothing turns
      (sink ? sink_keys : keys)
          .push_back(head_of(row.subspan((heads + h) * dim, dim), layer.k_norm, spec.norm_epsilon));
      (sink ? sink_values : values)
          .push_back(head_of(row.subspan((heads + kv_heads + h) * dim, dim), nullptr, 0));
    }
    const std::vector<float> offsets = offsets_of(keys, turns, dim / 2);
    const std::vector<float> k_scales = scales_of(key_ranges(keys, offsets, turns, dim / 2));
    const std::vector<float> v_scales = scales_of(value_ranges(values, dim));
    append(out.k_offset, offsets);
    append(out.k_scale, k_scales);
    append(out.v_scale, v_scales);
    append(out.sink_factor,
           {sink_factor(sink_keys, k_scales, offsets.data()), sink_factor(sink_values, v_scales, nullptr)});
  }
  return out;
}

Result<std::vector<weights::KvCalibration>> calibrate_kv(
    const weights::ModelFile& draft, backend::Backend& backend,
    std::span<const std::vector<std::int32_t>> sequences) {
  const weights::ModelSpec& spec = draft.spec();
  std::map<const float*, ContextTurns> turns;  // by rotary table: layers share them
  std::vector<weights::KvCalibration> out;
  Batch batch(draft, backend, sequences);
  batch.model().watch_qkv([&](std::int32_t index, std::span<const float> qkv) {
    const weights::LayerWeights& layer = draft.layers()[static_cast<std::size_t>(index)];
    const auto found = turns.try_emplace(layer.rope.high_cos, layer.rope, spec.context, spec.head_dim).first;
    out.push_back(measure_layer(spec, layer, found->second, {qkv, batch.positions()}));
    batch.model().set_kv_scales(index, weights::kv_scale_section(out.back(), spec.score_scale));
  });
  if (!batch.forward()) return overflow_error();
  return out;
}

}  // namespace fieldprint::eval
