#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "weights/model_file.h"

namespace fieldprint::weights {

/// The tensors of a model, by what they do. The first three belong to the model (layer is ignored), the
/// others to a layer. Shapes are row-major, with H, K, D, dim, hidden and vocab of ModelSpec.
enum class TensorRole : std::uint8_t {
  kEmbedding,  ///< [vocab][dim], without ModelSpec::embedding_scale
  kOutput,     ///< [vocab][dim]; equals the embedding where they are tied
  kOutputNorm,
  kAttentionNorm,
  kQuery,              ///< [H·D][dim]; rotary pairs are rows i and i + D/2 of a head, as for keys
  kKey,                ///< [K·D][dim]
  kValue,              ///< [K·D][dim]
  kQNorm,              ///< [D]; Gemma 3 only, as are the other norms marked so
  kKNorm,              ///< [D]; Gemma 3 only
  kAttentionOutput,    ///< [dim][H·D]
  kPostAttentionNorm,  ///< [dim]; Gemma 3 only
  kFfnNorm,            ///< [dim]
  kGate,               ///< [hidden][dim]
  kUp,                 ///< [hidden][dim]
  kDown,               ///< [dim][hidden]
  kPostFfnNorm,        ///< [dim]; Gemma 3 only
};

/// A model's weights as float32, for evaluation that does not depend on the packed formats. Safe to share
/// between threads.
class FloatSource {
 public:
  /// Opens a GGUF file (the weights as published) or a .fpm file (the weights as fieldprint computes with
  /// them); the file's first bytes decide which.
  static Result<std::unique_ptr<FloatSource>> open(const std::string& path);

  FloatSource() = default;
  virtual ~FloatSource() = default;
  FloatSource(const FloatSource&) = delete;
  FloatSource& operator=(const FloatSource&) = delete;

  virtual const ModelSpec& spec() const = 0;
  virtual bool tied() const = 0;
  virtual bool local(std::int32_t layer) const = 0;
  virtual bool has(TensorRole role, std::int32_t layer) const = 0;
  /// The whole tensor, dequantised; empty where the model has none.
  virtual std::vector<float> tensor(TensorRole role, std::int32_t layer) const = 0;
  /// Rotary tables of a layer, valid as long as this object.
  virtual backend::RopeTable rope(std::int32_t layer) const = 0;
};

}  // namespace fieldprint::weights
