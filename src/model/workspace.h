#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "exact/choice.h"
#include "weights/model_file.h"

namespace fieldprint::model {

/// A typed run of device memory, owned.
template <class T>
class DeviceArray {
 public:
  DeviceArray(backend::Backend& backend, std::int64_t count)
      : backend_(&backend),
        bytes_(count * static_cast<std::int64_t>(sizeof(T))),
        data_(reinterpret_cast<T*>(backend.allocate(bytes_))) {}
  ~DeviceArray() { backend_->release(reinterpret_cast<std::uint8_t*>(data_)); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  backend::Backend* backend_;
  std::int64_t bytes_;
  T* data_;
};

/// What the host tells the device of a step, side by side so that it goes there in one transfer, after what
/// comes back in one. T = tokens of the step; where all lies depends on T alone.
struct StepInputs {
  std::int32_t* non_finite;     ///< [T], goes there as zeros and comes back
  std::int32_t* chosen;         ///< [logit rows], comes back
  std::int32_t* tokens;         ///< [T]
  std::int32_t* positions;      ///< [T]
  std::int32_t* blocks;         ///< [T]
  std::int32_t* slots;          ///< [T]
  std::int32_t* rows;           ///< [logit rows] token row of each
  exact::TokenChoice* choices;  ///< [logit rows]
};

/// Device memory for one step of at most `tokens` tokens, of which at most `logit_rows` at a time get logits.
struct Workspace {
  Workspace(backend::Backend& backend, const weights::ModelSpec& spec, std::int32_t tokens,
            std::int32_t logit_rows);

  /// The quantised rows seen as rows of `cols` columns in `format`.
  backend::QuantRows quantised(backend::ActivationFormat format, std::int32_t cols) const;

  /// Lays `step` out for a step of `tokens` tokens.
  void lay_out(std::int32_t tokens);

  DeviceArray<std::int32_t> inputs;
  StepInputs step{};
  DeviceArray<std::int32_t> logit_flags;  ///< [logit rows] of the last norm: logits that are NaN say as much
  DeviceArray<std::uint32_t> seen;        ///< [logit rows][exact::seen_words(vocab)]
  // Activations.
  DeviceArray<float> residual;  ///< [T][dim]
  DeviceArray<float> qkv;       ///< [T][(H + 2K)·D]
  DeviceArray<float> wide;  ///< [T][max(2·hidden, H·D, dim)]: gate and up, attention output, sub-layer output
  DeviceArray<std::int8_t> q;        ///< [T][H][D]
  DeviceArray<std::int32_t> q_step;  ///< [T][H]
  DeviceArray<float> states;         ///< [T][H][2][attention_state_floats(D)]
  DeviceArray<float> anchor_mass;    ///< [layers][T][H]
  // Quantised rows, the widest of any linear.
  DeviceArray<std::int8_t> quant_q;
  DeviceArray<float> quant_scale;
  DeviceArray<float> quant_block_sum;
  DeviceArray<std::int32_t> quant_row_sum;
  // Output.
  DeviceArray<float> logits;                ///< [logit rows][vocab]
  DeviceArray<std::int32_t> probabilities;  ///< [vocab]
  DeviceArray<float> probability_scale;     ///< [1]
};

}  // namespace fieldprint::model
