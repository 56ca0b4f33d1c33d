#include <optional>
#include <string>
#include <utility>

#include "base/bounds.h"
#include "tokenizer/tokenizer.h"
#include "weights/gguf_model.h"

namespace fieldprint::weights {
namespace {

using tokenizer::Kind;
using tokenizer::TokenType;
using tokenizer::Vocabulary;

/// Keys of the GGUF specification, section "Tokenizer".
class VocabularyReader {
 public:
  explicit VocabularyReader(const Gguf& gguf) : gguf_(gguf) {}

  Result<Vocabulary> read() {
    for (const auto step : {&VocabularyReader::kind, &VocabularyReader::texts, &VocabularyReader::types,
                            &VocabularyReader::special_tokens, &VocabularyReader::flags}) {
      if (Status status = (this->*step)(); !status) return status.error();
    }
    return std::move(out_);
  }

 private:
  static std::string key(std::string_view name) { return fmt::format("tokenizer.ggml.{}", name); }

  Status text_if_present(const std::string& name, std::string& out) {
    if (!gguf_.has(name)) return {};
    const auto text = gguf_.string(name);
    if (!text) return text.error();
    out = std::string(*text);
    return {};
  }

  Status kind() {
    const auto model = gguf_.string(key("model"));
    if (!model) return model.error();
    if (*model == "gpt2") {
      out_.kind = Kind::kBpe;
    } else if (*model == "llama") {
      out_.kind = Kind::kSentencePiece;
    } else {
      return caller_error(
          fmt::format("tokenizer model {} is not supported; gpt2 (byte-level BPE) and llama "
                      "(SentencePiece) are",
                      printable(*model)));
    }
    if (Status status = text_if_present("general.architecture", out_.architecture); !status) return status;
    if (Status status = text_if_present(key("pre"), out_.pre_tokenizer); !status) return status;
    return text_if_present("tokenizer.chat_template", out_.chat_template);
  }

  Status fill(const std::string& name, std::int64_t limit, tokenizer::TextArena& arena) {
    const auto count = gguf_.length(name);
    if (!count) return count.error();
    if (*count > limit)
      return caller_error(fmt::format("{} has {} entries, more than {}", name, *count, limit));
    bool fits = true;
    Status status = gguf_.strings(name, [&](std::string_view text) {
      fits = arena.push_back(text);
      return fits;
    });
    if (!status) return status;
    if (!fits) return caller_error(fmt::format("{} holds more than {} bytes", name, bounds::kMaxTextBytes));
    return {};
  }

  Status texts() {
    if (Status status = fill(key("tokens"), bounds::kMaxVocab, out_.tokens); !status) return status;
    if (out_.kind == Kind::kBpe) return fill(key("merges"), bounds::kMaxMerges, out_.merges);
    auto scores = gguf_.reals(key("scores"));
    if (!scores) return scores.error();
    out_.scores = std::move(*scores);
    return {};
  }

  Status types() {
    if (!gguf_.has(key("token_type"))) {
      out_.types.assign(out_.tokens.size(), TokenType::kNormal);
      return {};
    }
    const auto values = gguf_.integers(key("token_type"));
    if (!values) return values.error();
    for (const std::int64_t value : *values) {
      if (value < 1 || value > 6) {
        return caller_error(fmt::format("{} holds {}; 1 to 6 are possible", key("token_type"), value));
      }
      out_.types.push_back(static_cast<TokenType>(value));
    }
    return {};
  }

  Status special_tokens() {
    const std::pair<std::string_view, std::optional<std::int32_t>*> ids[] = {
        {"bos_token_id", &out_.bos},     {"eos_token_id", &out_.eos},     {"eot_token_id", &out_.eot},
        {"unknown_token_id", &out_.unk}, {"padding_token_id", &out_.pad},
    };
    for (const auto& [name, id] : ids) {
      if (!gguf_.has(key(name))) continue;
      const auto value = gguf_.integer(key(name));
      if (!value) return value.error();
      if (*value < 0 || *value >= static_cast<std::int64_t>(out_.tokens.size())) {
        return caller_error(
            fmt::format("{} is {}, but there are {} tokens", key(name), *value, out_.tokens.size()));
      }
      *id = static_cast<std::int32_t>(*value);
    }
    return {};
  }

  Status flags() {
    const auto defaults = tokenizer::defaults_for(out_.kind, out_.pre_tokenizer);
    out_.add_bos = defaults.add_bos;
    out_.add_space_prefix = defaults.add_space_prefix;
    const std::pair<std::string_view, bool*> flags[] = {
        {"add_bos_token", &out_.add_bos},
        {"add_eos_token", &out_.add_eos},
        {"add_space_prefix", &out_.add_space_prefix},
    };
    for (const auto& [name, flag] : flags) {
      if (!gguf_.has(key(name))) continue;
      const auto value = gguf_.boolean(key(name));
      if (!value) return value.error();
      *flag = *value;
    }
    return {};
  }

  const Gguf& gguf_;
  Vocabulary out_;
};

}  // namespace

Result<Vocabulary> read_gguf_vocabulary(const Gguf& gguf) {
  auto vocabulary = VocabularyReader(gguf).read();
  if (!vocabulary) return vocabulary.error();
  const auto accepted = tokenizer::Tokenizer::make(*vocabulary);
  if (!accepted) return accepted.error();
  return vocabulary;
}

}  // namespace fieldprint::weights
