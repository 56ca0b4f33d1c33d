#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "core/block_layout.h"
#include "model/workspace.h"
#include "weights/import.h"
#include "weights/model_file.h"

namespace fieldprint::model {

/// One sequence's part of a step: tokens at consecutive positions whose KV goes to the blocks of its table.
struct SequenceSlice {
  std::span<const std::int32_t> tokens;
  std::int32_t first_position = 0;
  std::int32_t anchor_tokens = 0;
  /// Block ids in table order: sink, anchors, context; long enough for the last token.
  const std::int32_t* blocks = nullptr;
  float floor_odds = 0;
  float ceiling_odds = 0;
  /// How many of the last tokens get logits.
  std::int32_t logits = 0;
};

/// What chooses the token after a row.
struct RowChoice {
  exact::TokenChoice choice;
  std::span<const std::uint32_t> seen;  ///< the history's tokens as bits; may be empty without a penalty
};

/// What a step gives.
struct StepResult {
  std::vector<bool> finite;          ///< of each slice, whether every activation was
  std::vector<std::int32_t> tokens;  ///< of each choice, or exact::kNoToken
};

/// The block pool as kernels see it.
struct KvView {
  std::uint8_t* pool = nullptr;
  std::int64_t block_stride = 0;
};

/// Runs the transformer on a backend. One instance serves one stream of steps; the weights are shared.
class Model {
 public:
  /// `max_tokens` bounds the tokens of one step, `max_choices` those that it chooses.
  Model(const weights::ModelFile& file, backend::Backend& backend, std::int32_t max_tokens,
        std::int32_t max_choices = 0);

  const weights::ModelSpec& spec() const { return file_.spec(); }
  std::int32_t max_tokens() const { return max_tokens_; }
  /// Rows that one call of logits() may ask for.
  std::int32_t max_logit_rows() const { return max_logit_rows_; }

  /// Enqueues a ragged batch: prefill chunks and decode steps in any mixture. Writes the new tokens' KV,
  /// leaves their final hidden states for logits(), and chooses the token after each of the slices' logit
  /// rows, in their order; with no choices it computes no logits. The block tables must stay until finish().
  void begin(std::span<const SequenceSlice> slices, KvView kv, std::span<const RowChoice> choices);
  /// Waits for it.
  StepResult finish();
  /// Both, without choices: for each slice whether every activation was finite.
  std::vector<bool> forward(std::span<const SequenceSlice> slices, KvView kv);

  /// Logits of rows first.. of the last step, in slice order: [count][vocab], until the next call.
  std::span<const float> logits(std::int32_t first, std::int32_t count);
  /// The token after each of rows first.. of the last step, which had no choices of its own: of as many rows
  /// as one call of logits() may ask for. exact::kNoToken where there is none.
  std::vector<std::int32_t> choose(std::int32_t first, std::span<const RowChoice> choices);
  /// Of one row that the last step chose for, as if logits() had given all of them.
  std::span<const float> chosen_logits(std::int32_t row);
  /// Replaces row `row` of the last logits() call, for penalties.
  void set_logits(std::int32_t row, std::span<const float> logits);
  /// Fixed-point probabilities [vocab] of row `row` of the last logits() call, in units of 2^-30 of the
  /// largest, of softmax(logits·scale·ln 2). Until the next call.
  std::span<const std::int32_t> probabilities(std::int32_t row, float scale);
  /// Share of the anchors in each layer's attention, mean over heads, for a row counted as in logits().
  /// [layers]
  std::vector<float> anchor_mass(std::int32_t row);

  /// Quantises the inputs of every w8r linear of `role` to `format` from here on: how calibration tries a
  /// format.
  void use_activation(weights::LinearRole role, backend::ActivationFormat format);

  /// Sees the rows that each layer of a forward pass takes queries, keys and values from: float
  /// [T][(H + 2K)·D], before head norms and rotation.
  using QkvHook = std::function<void(std::int32_t layer, std::span<const float> qkv)>;
  /// Shows them to `hook` from here on, or to nobody if it is empty: how calibration measures them.
  void watch_qkv(QkvHook hook) { qkv_hook_ = std::move(hook); }
  /// Gives a layer scales of the layout of weights::kv_scale_section in place of the file's, even while its
  /// rows are being shown.
  void set_kv_scales(std::int32_t layer, std::span<const float> section);

  backend::Backend& backend() const { return backend_; }

 private:
  void upload_inputs(std::span<const SequenceSlice> slices, std::span<const RowChoice> choices);
  void compute_logits(std::int32_t first, std::int32_t count);
  void upload_seen(std::span<const RowChoice> choices);
  void choose_tokens(std::int32_t count);
  void layer(std::int32_t index, KvView kv);
  void show_qkv(std::int32_t index);
  void attend(std::int32_t index, KvView kv);
  /// residual += output of a linear on `input`, through the post-norm where the model has one.
  void add_output(const backend::PackedWeight& w, const backend::QuantRows& input, const float* post_norm);
  /// Norms the residual and multiplies it by each part, stacking the results in `out`.
  void project(std::span<const backend::PackedWeight> parts, const float* norm, float* out,
               std::int64_t stride);

  const weights::ModelFile& file_;
  std::vector<weights::LayerWeights> layers_;  ///< as the device reads them
  backend::PackedWeight embedding_;
  backend::PackedWeight output_;
  const float* output_norm_;
  backend::Backend& backend_;
  std::int32_t max_tokens_;
  std::int32_t max_logit_rows_;
  Workspace space_;
  QkvHook qkv_hook_;
  std::vector<std::unique_ptr<DeviceArray<float>>> own_scales_;  ///< what set_kv_scales was given
  std::int32_t tokens_ = 0;                                      ///< of the current step
  std::vector<std::int32_t> slice_ends_;                         ///< of the current step, in its tokens
  std::int32_t choices_ = 0;                                     ///< of the current step
  std::vector<float> masses_;             ///< [layers][tokens][heads], where they came back in one piece
  std::vector<std::int32_t> logit_rows_;  ///< token row of each logit row
  /// Of a step in which each of so many sequences decodes one token, with so many choices, in that pool.
  std::map<std::tuple<std::int32_t, std::int32_t, const std::uint8_t*, std::int64_t>,
           std::unique_ptr<backend::Recording>>
      decodes_;
  std::vector<std::uint8_t> logits_staging_;
  std::vector<std::uint8_t> probabilities_staging_;
};

}  // namespace fieldprint::model
