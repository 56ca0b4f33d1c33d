#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "weights/float_weights.h"

namespace fieldprint::eval {

/// The transformer in plain float32, written without the kernels and formats of the token path: what the
/// canonical model is measured against. Approximate: its last bits depend on the BLAS library, libm and the
/// machine. Formulas: Touvron et al., LLaMA (2023); Gemma Team, Gemma 3 (2025). Holds every weight as
/// float32.
class FloatModel {
 public:
  /// Dequantises every tensor. `threads` ≥ 1. Switches OpenBLAS to one thread in this process: the work is
  /// divided here.
  FloatModel(std::unique_ptr<weights::FloatSource> source, int threads);

  const weights::ModelSpec& spec() const { return source_->spec(); }
  /// The threads of this model, free between its calls.
  ThreadPool& threads() { return pool_; }

  /// Runs one sequence from position 0. 1 ≤ tokens.size() ≤ spec().context; ids below spec().vocab.
  void forward(std::span<const std::int32_t> tokens);

  /// Logits of positions first.. of the last forward(): [count][vocab], until the next call.
  std::span<const float> logits(std::int64_t first, std::int64_t count);

 private:
  using Floats = std::vector<float>;
  struct Layer {
    Floats attention_norm, query, key, value, q_norm, k_norm, attention_output, post_attention_norm;
    Floats ffn_norm, gate, up, down, post_ffn_norm;
  };
  /// Rotations of every position of the sequence. [T][D/2]
  struct Rotations {
    Floats cos, sin;
  };

  Layer load_layer(std::int32_t index) const;
  Rotations rotations(const backend::RopeTable& table) const;
  /// out [rows][w.size()/columns] = x [rows][columns] · wᵀ
  void multiply(const float* x, std::int64_t rows, std::int64_t columns, const Floats& w, float* out);
  void attention_block(std::int32_t layer);
  void attend(bool local);
  void attend_tile(std::int64_t head, std::int64_t begin, std::int64_t end, bool local);
  void feed_forward_block(const Layer& layer);
  /// residual_ += x, through the post-norm where there is one.
  void add_to_residual(Floats& x, const Floats& post_norm);

  std::unique_ptr<weights::FloatSource> source_;
  ThreadPool pool_;
  Floats embedding_;
  Floats output_;  ///< empty where the embedding serves
  Floats output_norm_;
  std::vector<Layer> layers_;
  // The current sequence, T tokens.
  std::int64_t tokens_ = 0;
  Rotations global_rotations_, local_rotations_;
  Floats residual_, normed_, sub_layer_;  ///< [T][dim]
  Floats query_, attended_;               ///< [T][H·D]
  Floats key_, value_;                    ///< [T][K·D]
  Floats gate_, up_;                      ///< [T][hidden]
  Floats logits_;
};

}  // namespace fieldprint::eval
