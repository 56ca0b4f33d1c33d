#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"
#include "model/model.h"
#include "weights/model_file.h"

namespace fieldprint::eval {

/// What is said of a model whose weights take its values to infinity.
Error overflow_error();

/// Runs one sequence without anchors from position 0, in one step, in blocks 0, 1, 2, … of its own.
class WindowRunner {
 public:
  /// `tokens` is the longest window.
  WindowRunner(const weights::ModelFile& file, backend::Backend& backend, std::int32_t tokens);

  model::Model& model() { return model_; }

  /// The last `logits` tokens get logits. An overflow in the model is the caller's error.
  Status forward(std::span<const std::int32_t> tokens, std::int32_t logits);

 private:
  const weights::ModelSpec& spec_;
  model::Model model_;
  std::int64_t block_bytes_;
  std::vector<std::int32_t> table_;
  model::DeviceArray<std::uint8_t> pages_;
};

}  // namespace fieldprint::eval
