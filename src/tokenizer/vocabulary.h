#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace fieldprint::tokenizer {

/// Many short strings in one block of bytes: 4 bytes of overhead each.
class TextArena {
 public:
  std::size_t size() const { return ends_.size(); }
  bool empty() const { return ends_.empty(); }
  std::size_t byte_count() const { return bytes_.size(); }

  /// The view is valid until the next push_back. i < size().
  std::string_view operator[](std::size_t i) const {
    const std::uint32_t begin = i == 0 ? 0 : ends_[i - 1];
    return {bytes_.data() + begin, ends_[i] - begin};
  }
  /// False, with nothing appended, when the block would exceed bounds::kMaxTextBytes.
  bool push_back(std::string_view text);
  void reserve(std::size_t texts, std::size_t bytes);

  bool operator==(const TextArena&) const = default;

 private:
  std::string bytes_;
  std::vector<std::uint32_t> ends_;
};

enum class Kind : std::uint8_t {
  kBpe = 1,            ///< byte-level BPE: `tokenizer.ggml.model` = "gpt2"
  kSentencePiece = 2,  ///< SentencePiece BPE by score: `tokenizer.ggml.model` = "llama"
};

/// The values of GGUF's `tokenizer.ggml.token_type`.
enum class TokenType : std::uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

/// What a GGUF file says about its tokenizer (keys `tokenizer.ggml.*`; GGUF specification, "Tokenizer"), and
/// the architecture, which stands in for a missing chat template. Plain data; Tokenizer::make judges it.
struct Vocabulary {
  Kind kind = Kind::kBpe;
  std::string architecture;      ///< `general.architecture`
  std::string pre_tokenizer;     ///< `tokenizer.ggml.pre`; BPE only; empty reads as "default"
  std::string chat_template;     ///< `tokenizer.chat_template`; may be empty
  TextArena tokens;              ///< by token id
  std::vector<float> scores;     ///< by token id; may be empty for BPE
  std::vector<TokenType> types;  ///< by token id
  TextArena merges;              ///< BPE: "left right", best first
  std::optional<std::int32_t> bos, eos, eot, unk, pad;
  bool add_bos = false;           ///< sequences begin with bos
  bool add_eos = false;           ///< sequences end with eos; kept for the record, a prompt never does
  bool add_space_prefix = false;  ///< SentencePiece: text is read as if a space stood before it

  bool operator==(const Vocabulary&) const = default;
};

/// What llama.cpp assumes where a GGUF file does not say.
struct VocabularyDefaults {
  bool add_bos;
  bool add_space_prefix;
};
VocabularyDefaults defaults_for(Kind kind, std::string_view pre_tokenizer);

/// One byte string per vocabulary: little endian, versioned, no padding.
std::string serialize(const Vocabulary& vocabulary);

/// The inverse of serialize. Every count and length is checked before it is believed; bytes left over are an
/// error.
Result<Vocabulary> parse(std::span<const std::uint8_t> bytes);

}  // namespace fieldprint::tokenizer
