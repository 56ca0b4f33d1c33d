#pragma once

#include <vector>

#include "base/result.h"
#include "weights/gguf.h"
#include "weights/model_file.h"
#include "weights/pack.h"

namespace fieldprint::weights {

/// Tensors of one layer as the file names them, shapes checked.
struct GgufLayer {
  bool local = false;
  const GgufTensor* attention_norm = nullptr;
  LogicalMatrix query;
  LogicalMatrix key;
  LogicalMatrix value;
  const GgufTensor* q_norm = nullptr;  ///< null where the model has none, as below
  const GgufTensor* k_norm = nullptr;
  LogicalMatrix attention_output;
  const GgufTensor* post_attention_norm = nullptr;
  const GgufTensor* ffn_norm = nullptr;
  LogicalMatrix gate;
  LogicalMatrix up;
  LogicalMatrix down;
  const GgufTensor* post_ffn_norm = nullptr;
};

/// A language model of a supported architecture in a GGUF file; pointers lead into the Gguf.
struct GgufModel {
  ModelSpec spec;
  LogicalMatrix embedding;
  LogicalMatrix output;  ///< the embedding where they are tied
  bool tied = false;
  const GgufTensor* output_norm = nullptr;
  std::vector<GgufLayer> layers;
  std::vector<double> rope_frequencies;        ///< [D/2], radians a position
  std::vector<double> local_rope_frequencies;  ///< of local layers; empty where the model has none
};

/// Reads hyper-parameters and finds the tensors. What the model needs and fieldprint does not have (another
/// architecture, experts, biases, tensors of unknown use) is an error that names it.
Result<GgufModel> read_gguf_model(const Gguf& gguf);

/// The vocabulary that the file holds, accepted by tokenizer::Tokenizer.
Result<tokenizer::Vocabulary> read_gguf_vocabulary(const Gguf& gguf);

}  // namespace fieldprint::weights
