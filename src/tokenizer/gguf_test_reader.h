#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace fieldprint::tokenizer::testing {

/// Reads the tokenizer keys of a GGUF v3 file that is known to be good. The tests' own, so that they do not
/// rest on the reader that rests on this room.
class GgufTestReader {
 public:
  explicit GgufTestReader(const std::string& path) : in_(path, std::ios::binary) {
    in_.exceptions(std::ios::failbit | std::ios::badbit);
    in_.seekg(4 + 4 + 8);
    const auto keys = number<std::uint64_t>();
    for (std::uint64_t i = 0; i < keys; ++i) {
      const std::string key = text();
      read_value(key, number<std::uint32_t>());
    }
  }

  Vocabulary vocabulary() {
    Vocabulary out;
    out.kind = texts_["tokenizer.ggml.model"] == "llama" ? Kind::kSentencePiece : Kind::kBpe;
    out.architecture = texts_["general.architecture"];
    if (out.kind == Kind::kBpe) out.pre_tokenizer = texts_["tokenizer.ggml.pre"];
    out.chat_template = texts_["tokenizer.chat_template"];
    out.tokens = arenas_["tokenizer.ggml.tokens"];
    out.merges = arenas_["tokenizer.ggml.merges"];
    for (const double value : arrays_["tokenizer.ggml.scores"])
      out.scores.push_back(static_cast<float>(value));
    for (const double value : arrays_["tokenizer.ggml.token_type"])
      out.types.push_back(static_cast<TokenType>(value));
    const auto defaults = defaults_for(out.kind, out.pre_tokenizer);
    const auto id = [&](const char* key) -> std::optional<std::int32_t> {
      if (!numbers_.contains(key)) return std::nullopt;
      return static_cast<std::int32_t>(numbers_[key]);
    };
    const auto flag = [&](const char* key, bool otherwise) { return id(key) ? *id(key) != 0 : otherwise; };
    out.bos = id("tokenizer.ggml.bos_token_id");
    out.eos = id("tokenizer.ggml.eos_token_id");
    out.eot = id("tokenizer.ggml.eot_token_id");
    out.unk = id("tokenizer.ggml.unknown_token_id");
    out.pad = id("tokenizer.ggml.padding_token_id");
    out.add_bos = flag("tokenizer.ggml.add_bos_token", defaults.add_bos);
    out.add_eos = flag("tokenizer.ggml.add_eos_token", false);
    out.add_space_prefix = flag("tokenizer.ggml.add_space_prefix", defaults.add_space_prefix);
    return out;
  }

 private:
  template <class T>
  T number() {
    T value{};
    in_.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  std::string text() {
    std::string out(number<std::uint64_t>(), '\0');
    in_.read(out.data(), static_cast<std::streamsize>(out.size()));
    return out;
  }
  double scalar(std::uint32_t type) {
    switch (type) {
      case 0:
      case 7:
        return number<std::uint8_t>();
      case 1:
        return number<std::int8_t>();
      case 2:
        return number<std::uint16_t>();
      case 3:
        return number<std::int16_t>();
      case 4:
        return number<std::uint32_t>();
      case 5:
        return number<std::int32_t>();
      case 6:
        return number<float>();
      case 10:
        return static_cast<double>(number<std::uint64_t>());
      case 11:
        return static_cast<double>(number<std::int64_t>());
      default:
        return number<double>();
    }
  }
  void read_value(const std::string& key, std::uint32_t type) {
    constexpr std::uint32_t kString = 8;
    constexpr std::uint32_t kArray = 9;
    if (type == kString) {
      texts_[key] = text();
    } else if (type != kArray) {
      numbers_[key] = scalar(type);
    } else {
      const auto element = number<std::uint32_t>();
      const auto count = number<std::uint64_t>();
      for (std::uint64_t i = 0; i < count; ++i) {
        if (element == kString) {
          arenas_[key].push_back(text());
        } else {
          arrays_[key].push_back(scalar(element));
        }
      }
    }
  }

  std::ifstream in_;
  std::map<std::string, std::string> texts_;
  std::map<std::string, double> numbers_;
  std::map<std::string, TextArena> arenas_;
  std::map<std::string, std::vector<double>> arrays_;
};

/// The tokenizer of the GGUF file that the environment variable names, or null.
inline std::unique_ptr<Tokenizer> from_environment(const char* variable) {
  const char* path = std::getenv(variable);
  if (path == nullptr || *path == '\0') return nullptr;
  auto made = Tokenizer::make(GgufTestReader(path).vocabulary());
  CHECK(made.ok(), "{}", made.error().message);
  return std::move(made).value();
}

}  // namespace fieldprint::tokenizer::testing
