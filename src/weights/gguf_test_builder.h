#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "weights/gguf_dequant.h"
#include "weights/model_file.h"

/// GGUF files made in memory, for tests and fuzzers.
namespace fieldprint::weights::testing {

using Bytes = std::vector<std::uint8_t>;

inline void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

class GgufBuilder {
 public:
  GgufBuilder& set_u32(std::string_view key, std::uint32_t value) {
    number(begin(key, 4), value, 4);
    return *this;
  }
  GgufBuilder& set_f32(std::string_view key, float value) {
    number(begin(key, 6), std::bit_cast<std::uint32_t>(value), 4);
    return *this;
  }
  GgufBuilder& set_bool(std::string_view key, bool value) {
    number(begin(key, 7), value ? 1 : 0, 1);
    return *this;
  }
  GgufBuilder& set_string(std::string_view key, std::string_view value) {
    text(begin(key, 8), value);
    return *this;
  }
  GgufBuilder& set_strings(std::string_view key, const std::vector<std::string>& values) {
    Bytes& out = begin_array(key, 8, values.size());
    for (const std::string& value : values) text(out, value);
    return *this;
  }
  GgufBuilder& set_f32s(std::string_view key, const std::vector<float>& values) {
    Bytes& out = begin_array(key, 6, values.size());
    for (const float value : values) number(out, std::bit_cast<std::uint32_t>(value), 4);
    return *this;
  }
  GgufBuilder& set_i32s(std::string_view key, const std::vector<std::int32_t>& values) {
    Bytes& out = begin_array(key, 5, values.size());
    for (const std::int32_t value : values) number(out, static_cast<std::uint32_t>(value), 4);
    return *this;
  }
  /// Any value: its type and its bytes as they stand in the file.
  GgufBuilder& set_raw(std::string_view key, std::uint32_t type, const Bytes& value) {
    Bytes& out = begin(key, type);
    out.insert(out.end(), value.begin(), value.end());
    return *this;
  }
  GgufBuilder& remove(std::string_view key) {
    std::erase_if(keys_, [&](const auto& entry) { return entry.first == key; });
    return *this;
  }

  /// `extent` in ggml's order: columns first.
  GgufBuilder& tensor(std::string_view name, std::vector<std::uint64_t> extent, std::uint32_t type,
                      Bytes data) {
    remove_tensor(name);
    tensors_.push_back({std::string(name), std::move(extent), type, std::move(data)});
    return *this;
  }
  GgufBuilder& remove_tensor(std::string_view name) {
    std::erase_if(tensors_, [&](const Tensor& entry) { return entry.name == name; });
    return *this;
  }

  Bytes build(std::uint32_t version = 3, std::uint64_t alignment = 32) const {
    Bytes out = {'G', 'G', 'U', 'F'};
    number(out, version, 4);
    number(out, tensors_.size(), 8);
    number(out, keys_.size(), 8);
    for (const auto& [key, value] : keys_) {
      text(out, key);
      out.insert(out.end(), value.begin(), value.end());
    }
    std::uint64_t offset = 0;
    for (const Tensor& tensor : tensors_) {
      text(out, tensor.name);
      number(out, tensor.extent.size(), 4);
      for (const std::uint64_t extent : tensor.extent) number(out, extent, 8);
      number(out, tensor.type, 4);
      number(out, offset, 8);
      offset = aligned(offset + tensor.data.size(), alignment);
    }
    for (const Tensor& tensor : tensors_) {
      out.resize(aligned(out.size(), alignment));
      out.insert(out.end(), tensor.data.begin(), tensor.data.end());
    }
    return out;
  }

 private:
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> extent;
    std::uint32_t type;
    Bytes data;
  };

  static std::uint64_t aligned(std::uint64_t at, std::uint64_t alignment) {
    return (at + alignment - 1) / alignment * alignment;
  }
  static void number(Bytes& out, std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
  }
  static void text(Bytes& out, std::string_view value) {
    number(out, value.size(), 8);
    out.insert(out.end(), value.begin(), value.end());
  }
  Bytes& begin(std::string_view key, std::uint32_t type) {
    remove(key);
    keys_.emplace_back(std::string(key), Bytes());
    number(keys_.back().second, type, 4);
    return keys_.back().second;
  }
  Bytes& begin_array(std::string_view key, std::uint32_t type, std::size_t count) {
    Bytes& out = begin(key, 9);
    number(out, type, 4);
    number(out, count, 8);
    return out;
  }

  std::vector<std::pair<std::string, Bytes>> keys_;
  std::vector<Tensor> tensors_;
};

/// Numbers that look random and are the same everywhere.
class Noise {
 public:
  explicit Noise(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ULL + 1) {}
  std::uint32_t next() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<std::uint32_t>(state_ >> 33);
  }
  /// −1 to 1.
  float real() { return static_cast<float>(next() % 20001) / 10000.0F - 1.0F; }

 private:
  std::uint64_t state_;
};

/// `rows`·`columns` values of a type: noise in the quantised digits, block scales near 2^-6.
inline Bytes noise_tensor(TensorType type, std::int64_t rows, std::int64_t columns, std::uint64_t seed) {
  Noise noise(seed);
  Bytes out;
  const TensorTypeTraits& traits = traits_of(type);
  for (std::int64_t block = 0; block < rows * columns / traits.columns; ++block) {
    Bytes bytes(static_cast<std::size_t>(traits.bytes));
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(noise.next() >> 5);
    const auto put_half = [&](std::size_t at, std::uint32_t half) {
      bytes[at] = static_cast<std::uint8_t>(half);
      bytes[at + 1] = static_cast<std::uint8_t>(half >> 8);
    };
    const std::uint32_t half = 0x2400 + noise.next() % 0x300;
    if (type == TensorType::kF32) {
      const auto bits = std::bit_cast<std::uint32_t>(0.5F + 0.25F * noise.real());
      for (std::size_t i = 0; i < 4; ++i) bytes[i] = static_cast<std::uint8_t>(bits >> (8 * i));
    } else if (type == TensorType::kF16) {
      put_half(0, half | (noise.next() % 2) << 15);
    } else if (type == TensorType::kBF16) {
      put_half(0, 0x3C00 + noise.next() % 0x100);
    } else if (type == TensorType::kQ6_K) {
      put_half(208, 0x0400 + noise.next() % 0x100);
    } else {
      put_half(0, half);
      const bool has_minimum = type == TensorType::kQ4_1 || type == TensorType::kQ5_1 ||
                               type == TensorType::kQ4_K || type == TensorType::kQ5_K;
      if (has_minimum)
        put_half(2, 0x2400 + noise.next() % 0x300 + (type == TensorType::kQ4_1 ? 0x8000U : 0U));
    }
    out.insert(out.end(), bytes.begin(), bytes.end());
  }
  return out;
}

/// A small model that import accepts: dim 64, two query heads of 32 on one KV head, hidden 96, context 600;
/// llama with two layers and byte-level BPE, gemma3 with seven layers (one global), window 128 and
/// SentencePiece.
struct TinyModel {
  Architecture architecture = Architecture::kLlama;
  TensorType attention = TensorType::kQ4_1;  ///< of q, k, v and output
  TensorType value = TensorType::kQ4_1;      ///< of v alone
  TensorType feed_forward = TensorType::kQ4_0;
  TensorType embedding = TensorType::kQ8_0;
  bool untied = false;

  static constexpr std::int64_t kDim = 64;
  static constexpr std::int64_t kHidden = 96;
  static constexpr std::int64_t kHeadDim = 32;
  static constexpr std::int64_t kHeads = 2;

  GgufBuilder builder() const {
    GgufBuilder out;
    metadata(out);
    const std::int64_t vocab = vocabulary(out);
    matrix(out, "token_embd.weight", embedding, vocab, kDim);
    if (untied) matrix(out, "output.weight", embedding, vocab, kDim);
    norm(out, "output_norm.weight", kDim);
    const int layers = gemma() ? 7 : 2;
    for (int i = 0; i < layers; ++i) layer(out, "blk." + std::to_string(i) + ".");
    return out;
  }

 private:
  bool gemma() const { return architecture == Architecture::kGemma3; }

  void metadata(GgufBuilder& out) const {
    const std::string arch = gemma() ? "gemma3" : "llama";
    out.set_string("general.architecture", arch).set_string("general.name", "Tiny");
    out.set_u32(arch + ".block_count", gemma() ? 7 : 2)
        .set_u32(arch + ".context_length", 600)
        .set_u32(arch + ".embedding_length", kDim)
        .set_u32(arch + ".feed_forward_length", kHidden)
        .set_u32(arch + ".attention.head_count", kHeads)
        .set_u32(arch + ".attention.head_count_kv", 1)
        .set_f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5F)
        .set_f32(arch + ".rope.freq_base", 1e5F);
    if (gemma()) {
      out.set_u32(arch + ".attention.key_length", kHeadDim)
          .set_u32(arch + ".attention.value_length", kHeadDim)
          .set_u32(arch + ".attention.sliding_window", 128);
    }
  }

  std::int64_t vocabulary(GgufBuilder& out) const {
    std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
    for (char c = 'a'; c <= 'z'; ++c) tokens.emplace_back(1, c);
    tokens.insert(tokens.end(), {"ab", "the", "th"});
    std::vector<std::int32_t> types(tokens.size(), 1);
    types[0] = 2;
    types[1] = types[2] = 3;
    out.set_string("tokenizer.ggml.model", gemma() ? "llama" : "gpt2")
        .set_string("tokenizer.ggml.pre", gemma() ? "default" : "smollm")
        .set_strings("tokenizer.ggml.tokens", tokens)
        .set_i32s("tokenizer.ggml.token_type", types)
        .set_u32("tokenizer.ggml.bos_token_id", 1)
        .set_u32("tokenizer.ggml.eos_token_id", 2)
        .set_u32("tokenizer.ggml.unknown_token_id", 0)
        .set_bool("tokenizer.ggml.add_bos_token", true);
    if (gemma()) {
      out.set_f32s("tokenizer.ggml.scores", std::vector<float>(tokens.size(), -1.0F));
    } else {
      out.set_strings("tokenizer.ggml.merges", {"a b", "t h", "th e"});
    }
    return static_cast<std::int64_t>(tokens.size());
  }

  static void matrix(GgufBuilder& out, const std::string& name, TensorType type, std::int64_t rows,
                     std::int64_t columns) {
    std::uint64_t seed = 7;
    for (const char c : name) seed = seed * 31 + static_cast<unsigned char>(c);
    out.tensor(name, {static_cast<std::uint64_t>(columns), static_cast<std::uint64_t>(rows)},
               static_cast<std::uint32_t>(type), noise_tensor(type, rows, columns, seed));
  }
  static void norm(GgufBuilder& out, const std::string& name, std::int64_t columns) {
    out.tensor(name, {static_cast<std::uint64_t>(columns)}, 0,
               noise_tensor(TensorType::kF32, 1, columns, name.size()));
  }

  void layer(GgufBuilder& out, const std::string& prefix) const {
    norm(out, prefix + "attn_norm.weight", kDim);
    matrix(out, prefix + "attn_q.weight", attention, kHeads * kHeadDim, kDim);
    matrix(out, prefix + "attn_k.weight", attention, kHeadDim, kDim);
    matrix(out, prefix + "attn_v.weight", value, kHeadDim, kDim);
    matrix(out, prefix + "attn_output.weight", attention, kDim, kHeads * kHeadDim);
    norm(out, prefix + "ffn_norm.weight", kDim);
    matrix(out, prefix + "ffn_gate.weight", feed_forward, kHidden, kDim);
    matrix(out, prefix + "ffn_up.weight", feed_forward, kHidden, kDim);
    matrix(out, prefix + "ffn_down.weight", feed_forward, kDim, kHidden);
    if (!gemma()) return;
    norm(out, prefix + "attn_q_norm.weight", kHeadDim);
    norm(out, prefix + "attn_k_norm.weight", kHeadDim);
    norm(out, prefix + "post_attention_norm.weight", kDim);
    norm(out, prefix + "post_ffw_norm.weight", kDim);
  }
};

}  // namespace fieldprint::weights::testing
