#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "backend/backend.h"
#include "commit/receipt.h"
#include "core/request.h"
#include "kv/block_table.h"
#include "model/model.h"
#include "sampler/sampler.h"
#include "tokenizer/tokenizer.h"

namespace fieldprint::verify {

/// What the model itself gives for the history that a receipt states.
struct Replayed {
  std::vector<std::int32_t> output;  ///< the model's choice at every place of the stated output
  std::vector<core::BlockRecord> blocks;
  std::vector<float> anchor_mass;  ///< [layers], or empty without anchors
  std::int64_t tokens = 0;         ///< computed
  double seconds = 0;
};

/// Called with tokens done and tokens in all.
using ReplayProgress = std::function<void(std::int64_t, std::int64_t)>;

/// Computes a stated history, prompt and output, as one prefill: the stated output is the draft, and each
/// token's logits say what the model chooses there.
class Replay {
 public:
  /// The body's tokens are in the model's vocabulary and fit its context; there is at least one output token.
  Replay(const commit::Body& body, const weights::ModelFile& file, backend::Backend& backend);

  Result<Replayed> run(const ReplayProgress& progress);
  /// Bytes of a block, in table order, after run().
  std::vector<std::uint8_t> block_bytes(std::int64_t index) const;

 private:
  Status compute(std::int64_t begin, std::int64_t end, Replayed& out);
  Status choose_outputs(std::int64_t first_position, std::int32_t rows, Replayed& out);

  const commit::Body& body_;
  std::int32_t chunk_tokens_;
  model::Model model_;
  kv::KvGeometry geometry_;
  core::BlockLayout layout_;
  std::vector<std::int32_t> tokens_;  ///< prompt and output but for the last
  std::int64_t prompt_tokens_;
  std::vector<double> mass_sum_;
  sampler::SeenTokens seen_;  ///< the history's first seen_tokens_, where there is a repetition penalty
  std::size_t seen_tokens_ = 0;
  kv::BlockPool pool_;
  kv::PrefixCache cache_;
  kv::BlockTable table_;
};

}  // namespace fieldprint::verify
