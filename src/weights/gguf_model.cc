#include "weights/gguf_model.h"

#include <cmath>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "base/bounds.h"
#include "exact/format.h"
#include "weights/rope_table.h"

namespace fieldprint::weights {
namespace {

constexpr double kLog2E = 0x1.71547652b82fep+0;
constexpr double kMaxRopeBase = 1e12;

// What llama.cpp assumes of gemma3 files (its models' hyper-parameters are not all in the file).
constexpr std::int64_t kGemma3Period = 6;         ///< every sixth layer is global
constexpr double kGemma3LocalRopeBase = 10000.0;  ///< of sliding-window layers
constexpr std::int64_t kGemma3LargestLayers = 62;

Error unsupported(std::string_view what) {
  return caller_error(
      fmt::format("this model is not supported: {}; use a model of the llama or gemma3 architecture", what));
}

/// Reads metadata and looks tensors up until the first that is wrong; from then on every answer is empty.
class ModelReader {
 public:
  explicit ModelReader(const Gguf& gguf) : gguf_(gguf) {}

  Result<GgufModel> read() {
    if (Status status = architecture(); !status) return status.error();
    hyper_parameters();
    window();
    rope();
    if (!error_) global_tensors();
    for (std::int32_t layer = 0; layer < model_.spec.layers && !error_; ++layer) {
      model_.layers.push_back(read_layer(layer));
    }
    if (!error_) reject_unused();
    if (error_) return *error_;
    return std::move(model_);
  }

 private:
  bool gemma() const { return model_.spec.architecture == Architecture::kGemma3; }
  std::string key(std::string_view name) const { return fmt::format("{}.{}", prefix_, name); }
  void fail(Error error) {
    if (!error_) error_ = std::move(error);
  }

  std::int64_t integer(std::string_view name, std::int64_t low, std::int64_t high) {
    if (error_) return low;
    const auto value = gguf_.integer(key(name));
    if (!value) {
      fail(value.error());
      return low;
    }
    if (*value < low || *value > high) {
      fail(unsupported(fmt::format("{} is {}, not within {} to {}", key(name), *value, low, high)));
      return low;
    }
    return *value;
  }
  std::int64_t integer_or(std::string_view name, std::int64_t fallback, std::int64_t low, std::int64_t high) {
    return gguf_.has(key(name)) ? integer(name, low, high) : fallback;
  }
  double real_or(std::string_view name, double fallback, double low, double high) {
    if (error_ || !gguf_.has(key(name))) return fallback;
    const auto value = gguf_.real(key(name));
    if (!value) {
      fail(value.error());
      return fallback;
    }
    if (!(*value >= low && *value <= high)) {
      fail(unsupported(fmt::format("{} is {}, not within {} to {}", key(name), *value, low, high)));
      return fallback;
    }
    return *value;
  }
  void reject_if_positive(std::string_view name, std::string_view what) {
    if (real_or(name, 0.0, -1e30, 1e30) > 0.0)
      fail(unsupported(fmt::format("it uses {} ({})", what, key(name))));
  }
  void require_multiple(std::string_view name, std::int64_t value) {
    if (value % 32 != 0) fail(unsupported(fmt::format("{} ({}) is no multiple of 32", name, value)));
  }

  Status architecture() {
    const auto name = gguf_.string("general.architecture");
    if (!name) return name.error();
    prefix_ = *name;
    if (prefix_ == "llama") {
      model_.spec.architecture = Architecture::kLlama;
    } else if (prefix_ == "gemma3") {
      model_.spec.architecture = Architecture::kGemma3;
    } else {
      return unsupported(fmt::format("its architecture is {}", printable(prefix_)));
    }
    const auto title = gguf_.string("general.name");
    model_.spec.name = title ? std::string(*title) : prefix_;
    return {};
  }

  void hyper_parameters() {
    ModelSpec& spec = model_.spec;
    reject_if_positive("expert_count", "a mixture of experts");
    reject_if_positive("attn_logit_softcapping", "soft-capped scores");
    reject_if_positive("final_logit_softcapping", "soft-capped logits");
    const auto int32 = [](std::int64_t value) { return static_cast<std::int32_t>(value); };
    spec.layers = int32(integer("block_count", 1, bounds::kMaxLayers));
    spec.dim = int32(integer("embedding_length", 32, bounds::kMaxDim));
    spec.hidden = int32(integer("feed_forward_length", 32, bounds::kMaxDim));
    spec.heads = int32(integer("attention.head_count", 1, bounds::kMaxHeads));
    spec.kv_heads = int32(integer_or("attention.head_count_kv", spec.heads, 1, spec.heads));
    spec.head_dim = int32(integer_or("attention.key_length", spec.dim / spec.heads, 32, bounds::kMaxHeadDim));
    spec.context = int32(integer("context_length", 1, bounds::kMaxContext));
    spec.norm_epsilon = static_cast<float>(real_or("attention.layer_norm_rms_epsilon", 0.0, 1e-12, 1.0));
    if (!error_ && spec.norm_epsilon == 0.0F) {
      fail(unsupported(fmt::format("{} is missing", key("attention.layer_norm_rms_epsilon"))));
    }
    if (error_) return;
    require_multiple(key("embedding_length"), spec.dim);
    require_multiple(key("feed_forward_length"), spec.hidden);
    // The fallback of a file without a key length is no integer that the reader has checked.
    if (spec.head_dim < 32 || spec.head_dim > bounds::kMaxHeadDim) {
      fail(unsupported(
          fmt::format("the head size is {}, not within 32 to {}", spec.head_dim, bounds::kMaxHeadDim)));
    }
    require_multiple("the head size", spec.head_dim);
    const std::int64_t value_length = integer_or("attention.value_length", spec.head_dim, 1, 1 << 20);
    const std::int64_t rotated = integer_or("rope.dimension_count", spec.head_dim, 1, 1 << 20);
    if (value_length != spec.head_dim) {
      fail(unsupported(fmt::format("values have {} channels and keys {}", value_length, spec.head_dim)));
    }
    if (rotated != spec.head_dim) {
      fail(unsupported(fmt::format("{} of {} channels of a head are rotated", rotated, spec.head_dim)));
    }
    if (spec.head_dim * spec.heads > bounds::kMaxDim || spec.heads % spec.kv_heads != 0 ||
        spec.heads / spec.kv_heads > bounds::kMaxGroup) {
      fail(unsupported(fmt::format("{} query heads of size {} on {} KV heads (at most {} share one)",
                                   spec.heads, spec.head_dim, spec.kv_heads, bounds::kMaxGroup)));
    }
    derived();
  }

  void derived() {
    ModelSpec& spec = model_.spec;
    // llama.cpp: the 27B model divides by sqrt(dim/heads), the others by sqrt(head size).
    const bool largest_gemma = gemma() && spec.layers == kGemma3LargestLayers;
    const double divisor = largest_gemma ? spec.dim / spec.heads : spec.head_dim;
    spec.score_scale = static_cast<float>(kLog2E / std::sqrt(divisor));
    spec.embedding_scale = gemma() ? std::sqrt(static_cast<float>(spec.dim)) : 1.0F;
    spec.gate = gemma() ? backend::GateFunction::kGelu : backend::GateFunction::kSilu;
  }

  void window() {
    const std::int64_t window = integer_or("attention.sliding_window", 0, 0, bounds::kMaxContext);
    const std::int64_t all_layers_local = 1;
    period_ = integer_or("attention.sliding_window_pattern", gemma() ? kGemma3Period : all_layers_local, 1,
                         bounds::kMaxLayers);
    model_.spec.window = window < model_.spec.context ? static_cast<std::int32_t>(window) : 0;
  }

  /// The last of each `period_` layers is global, where not all are alike.
  bool is_local(std::int32_t layer) const {
    return model_.spec.window > 0 && (period_ == 1 ? !gemma() : layer % period_ != period_ - 1);
  }

  void rope() {
    if (error_) return;
    const double base = real_or("rope.freq_base", 10000.0, 1.5, kMaxRopeBase);
    double divisor = real_or("rope.scale_linear", 1.0, 1e-6, 1e6);
    if (gguf_.has(key("rope.scaling.type"))) {
      const auto type = gguf_.string(key("rope.scaling.type"));
      if (!type) return fail(type.error());
      if (*type == "linear") {
        divisor = real_or("rope.scaling.factor", divisor, 1e-6, 1e6);
      } else if (*type != "none") {
        return fail(unsupported(fmt::format("rope scaling of type {}", printable(*type))));
      }
    } else {
      divisor = real_or("rope.scaling.factor", divisor, 1e-6, 1e6);
    }
    const double local_base = real_or("rope.freq_base_swa", kGemma3LocalRopeBase, 1.5, kMaxRopeBase);
    if (error_) return;
    model_.rope_frequencies = rope_frequencies(base, model_.spec.head_dim);
    for (double& frequency : model_.rope_frequencies) frequency /= divisor;
    if (gemma() && model_.spec.window > 0) {
      model_.local_rope_frequencies = rope_frequencies(local_base, model_.spec.head_dim);
    }
    frequency_factors();
    for (const double frequency : model_.rope_frequencies) {
      if (!(frequency > 0.0 && frequency <= 1.0))
        return fail(unsupported("its rope frequencies are not within 0 to 1"));
    }
  }

  /// Llama 3's long-context scaling: a divisor for each frequency, worked out by the converter.
  void frequency_factors() {
    const GgufTensor* const tensor = optional("rope_freqs.weight", 1, model_.spec.head_dim / 2);
    if (tensor == nullptr) return;
    std::vector<float> factors(model_.rope_frequencies.size());
    dequantize_row(tensor->type, tensor->data, factors);
    for (std::size_t i = 0; i < factors.size(); ++i)
      model_.rope_frequencies[i] /= static_cast<double>(factors[i]);
  }

  /// The tensor, when the file has it in this shape; a wrong shape is an error.
  const GgufTensor* optional(const std::string& name, std::int64_t rows, std::int64_t columns) {
    if (error_) return nullptr;
    const GgufTensor* const tensor = gguf_.find_tensor(name);
    if (tensor == nullptr) return nullptr;
    used_.insert(tensor->name);
    if (tensor->rows() != rows || tensor->columns() != columns || tensor->dimensions > 2) {
      fail(caller_error(
          fmt::format("tensor {} is [{}][{}], but the metadata asks for [{}][{}]; convert the model again",
                      name, tensor->rows(), tensor->columns(), rows, columns)));
      return nullptr;
    }
    return tensor;
  }
  const GgufTensor* required(const std::string& name, std::int64_t rows, std::int64_t columns) {
    const GgufTensor* const tensor = optional(name, rows, columns);
    if (tensor == nullptr && !error_) {
      fail(caller_error(fmt::format("tensor {} is missing; convert the model again", name)));
    }
    return tensor;
  }

  void global_tensors() {
    const GgufTensor* const embedding = gguf_.find_tensor("token_embd.weight");
    const std::int64_t rows = embedding == nullptr ? 0 : embedding->rows();
    if (rows > bounds::kMaxVocab)
      return fail(unsupported(fmt::format("{} tokens, more than {}", rows, bounds::kMaxVocab)));
    model_.spec.vocab = static_cast<std::int32_t>(rows);
    model_.embedding.tensor = required("token_embd.weight", rows, model_.spec.dim);
    const GgufTensor* const output = optional("output.weight", rows, model_.spec.dim);
    model_.tied = output == nullptr;
    model_.output.tensor = model_.tied ? model_.embedding.tensor : output;
    model_.output_norm = required("output_norm.weight", 1, model_.spec.dim);
  }

  GgufLayer read_layer(std::int32_t index) {
    const ModelSpec& spec = model_.spec;
    const std::int64_t queries = spec.heads * spec.head_dim;
    const std::int64_t keys = spec.kv_heads * spec.head_dim;
    const auto name = [&](std::string_view part) { return fmt::format("blk.{}.{}.weight", index, part); };
    const auto matrix = [&](std::string_view part, std::int64_t rows, std::int64_t columns) {
      return LogicalMatrix{.tensor = required(name(part), rows, columns)};
    };
    const auto rotary = [&](std::string_view part, std::int64_t rows) {
      LogicalMatrix out = matrix(part, rows, spec.dim);
      out.order = gemma() ? RowOrder::kPlain : RowOrder::kInterleaved;
      out.head_dim = spec.head_dim;
      return out;
    };
    GgufLayer out;
    out.local = is_local(index);
    out.attention_norm = required(name("attn_norm"), 1, spec.dim);
    out.query = rotary("attn_q", queries);
    out.key = rotary("attn_k", keys);
    out.value = matrix("attn_v", keys, spec.dim);
    out.attention_output = matrix("attn_output", spec.dim, queries);
    out.ffn_norm = required(name("ffn_norm"), 1, spec.dim);
    out.gate = matrix("ffn_gate", spec.hidden, spec.dim);
    out.up = matrix("ffn_up", spec.hidden, spec.dim);
    out.down = matrix("ffn_down", spec.dim, spec.hidden);
    if (gemma()) {
      out.q_norm = required(name("attn_q_norm"), 1, spec.head_dim);
      out.k_norm = required(name("attn_k_norm"), 1, spec.head_dim);
      out.post_attention_norm = required(name("post_attention_norm"), 1, spec.dim);
      out.post_ffn_norm = required(name("post_ffw_norm"), 1, spec.dim);
    }
    return out;
  }

  /// A tensor that is not read would be a part of the model that is left out.
  void reject_unused() {
    for (const auto& [name, tensor] : gguf_.tensors()) {
      if (used_.contains(name)) continue;
      const std::string_view kind = name.ends_with(".bias") ? "a bias" : "an unknown tensor";
      return fail(unsupported(fmt::format("it has {}, {}", kind, printable(name))));
    }
  }

  const Gguf& gguf_;
  std::string prefix_;
  std::int64_t period_ = 1;
  std::set<std::string_view> used_;
  std::optional<Error> error_;
  GgufModel model_;
};

}  // namespace

Result<GgufModel> read_gguf_model(const Gguf& gguf) { return ModelReader(gguf).read(); }

}  // namespace fieldprint::weights
