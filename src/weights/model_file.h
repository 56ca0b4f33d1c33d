#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/ops.h"
#include "base/result.h"
#include "base/sha256.h"
#include "tokenizer/vocabulary.h"

namespace fieldprint::weights {

struct FpmContents;

enum class Architecture : std::uint8_t { kLlama = 0, kGemma3 = 1 };

/// What a forward pass must know about a model besides its tensors.
struct ModelSpec {
  Architecture architecture = Architecture::kLlama;
  std::string name;
  std::int32_t layers = 0;
  std::int32_t dim = 0;
  std::int32_t hidden = 0;  ///< of the gated feed-forward
  std::int32_t heads = 0;
  std::int32_t kv_heads = 0;
  std::int32_t head_dim = 0;
  std::int32_t vocab = 0;
  std::int32_t context = 0;  ///< longest history, tokens
  std::int32_t window = 0;   ///< of local layers, tokens; 0 where the model has none
  float norm_epsilon = 0;
  float embedding_scale = 1;
  float score_scale = 0;  ///< log2(e)/sqrt(head_dim) (or of the model's own query scale)
  backend::GateFunction gate = backend::GateFunction::kSilu;
};

/// Tensors of one layer; pointers into the mapped file. Linears that read the same input are one matrix where
/// their formats agree (parts.size() 1), else several, in the order named, stacked in the output.
struct LayerWeights {
  bool local = false;                          ///< sliding-window layer
  const float* attention_norm = nullptr;       ///< [dim]
  std::vector<backend::PackedWeight> qkv;      ///< rows (H + 2K)·D
  const float* q_norm = nullptr;               ///< [D] or null
  const float* k_norm = nullptr;               ///< [D] or null
  const float* kv_scales = nullptr;            ///< [K][5·D + 4], read with kv_scales_of
  backend::PackedWeight attention_output{};    ///< [dim][H·D]
  const float* post_attention_norm = nullptr;  ///< [dim] or null
  const float* ffn_norm = nullptr;             ///< [dim]
  std::vector<backend::PackedWeight> gate_up;  ///< rows 2·hidden
  backend::PackedWeight down{};                ///< [dim][hidden]
  const float* post_ffn_norm = nullptr;        ///< [dim] or null
  backend::RopeTable rope{};
};

/// A mapped, fully checked .fpm file. Immutable; safe to share between threads.
class ModelFile {
 public:
  /// Maps and verifies `path`: layout, bounds, and the SHA-256 of every section. A truncated, altered or
  /// foreign file is refused with an error that names what is wrong.
  static Result<std::unique_ptr<ModelFile>> open(const std::string& path);
  ~ModelFile();
  ModelFile(const ModelFile&) = delete;
  ModelFile& operator=(const ModelFile&) = delete;

  /// The model's identity: SHA-256 of the header, which holds the digest of every section.
  const Digest& digest() const;
  const ModelSpec& spec() const;
  const std::vector<LayerWeights>& layers() const;
  const backend::PackedWeight& embedding() const;
  const backend::PackedWeight& output() const;  ///< the embedding itself where they are tied
  const float* output_norm() const;
  const tokenizer::Vocabulary& vocabulary() const;
  /// Readable JSON: source digest, canon version, hyper-parameters, format and measured error per tensor.
  const std::string& manifest() const;
  std::int64_t file_bytes() const;

 private:
  friend Result<std::unique_ptr<ModelFile>> random_model(const ModelSpec&, backend::ActivationFormat,
                                                         std::uint64_t);
  /// `memory` is what the contents' pointers lead into.
  static std::unique_ptr<ModelFile> make(FpmContents contents, std::shared_ptr<const void> memory,
                                         std::int64_t bytes);
  struct State;
  explicit ModelFile(State state);
  std::unique_ptr<State> state_;
};

}  // namespace fieldprint::weights
