#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"
#include "weights/import.h"
#include "weights/model_file.h"

namespace fieldprint::eval {

/// One layer's rows as a forward pass makes them, before head norms and rotation.
struct LayerRows {
  std::span<const float> qkv;               ///< [T][(H + 2K)·D]
  std::span<const std::int32_t> positions;  ///< [T]; at 0 stands a sink
};

/// What the rotations of a layer do over all positions of the context.
class ContextTurns {
 public:
  ContextTurns(const backend::RopeTable& rope, std::int32_t context, std::int32_t head_dim);

  struct Turn {
    double cos = 0;
    double sin = 0;
  };
  /// Of pair i, that is of channels i and i + D/2.
  struct Pair {
    Turn mean;
    bool round = false;     ///< goes round at least once
    std::vector<Turn> arc;  ///< of a pair that does not: turns that differ little from their neighbours
  };
  const Pair& pair(std::size_t i) const { return pairs_[i]; }

 private:
  std::vector<Pair> pairs_;
};

/// The scales of one layer from rows of it, which contain positions 0 and others. Offsets are what a channel
/// of the rotated keys is on average over the positions of the context; scales hold what the tokens seen
/// would be at any position of the context, with headroom.
weights::KvCalibration measure_layer(const weights::ModelSpec& spec, const weights::LayerWeights& layer,
                                     const ContextTurns& turns, const LayerRows& rows);

/// Measures every layer in one pass of the draft over `sequences`, which goes on with the scales of each
/// layer as soon as it has them. Rows are canonical and the rest is binary64 in a fixed order, so every
/// machine and backend measures the same. A model that overflows is the caller's error.
Result<std::vector<weights::KvCalibration>> calibrate_kv(
    const weights::ModelFile& draft, backend::Backend& backend,
    std::span<const std::vector<std::int32_t>> sequences);

}  // namespace fieldprint::eval
