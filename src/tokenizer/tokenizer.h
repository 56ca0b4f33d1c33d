#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "tokenizer/merge.h"
#include "tokenizer/pre_tokenizer.h"
#include "tokenizer/special_tokens.h"
#include "tokenizer/token_index.h"
#include "tokenizer/vocabulary.h"

namespace fieldprint::tokenizer {

struct EncodeOptions {
  bool add_bos = false;  ///< begin with BOS, if the vocabulary says that sequences do (Vocabulary::add_bos)
  bool parse_special =
      false;  ///< texts of control tokens become those tokens; only for text that we wrote ourselves
  bool continues = false;  ///< text stands before this one: no BOS, no space from add_space_prefix
};

/// Text to token ids and back, equal to llama.cpp on well-formed UTF-8. Immutable: safe to use from several
/// threads.
///
/// Round trip: decode(encode(text)) == text for every byte string, except
///  - bytes for which a byte-level vocabulary has no token are left out (SmolLM2 has none for 0x04, 0x06,
///  0x13, 0x14,
///    0x16, 0x1d, 0xc0, 0xc1, 0xf1, 0xf2 and 0xf5 to 0xff);
///  - SentencePiece writes a space as U+2581, so a U+2581 in the text reads back as a space; without byte
///  tokens, what
///    the vocabulary cannot spell becomes the unknown token.
/// Bytes that are not well-formed UTF-8 pass through: byte-level BPE has tokens for them, SentencePiece falls
/// back to its byte tokens. (llama.cpp puts U+FFFD in their place for BPE.)
///
/// Without parse_special no text gives a control token, not even by merging: control, unknown and byte tokens
/// take no part in merges (in llama.cpp they do for SentencePiece).
class Tokenizer {
 public:
  /// Errors: arrays of different lengths, ids out of range, scores that are not numbers, merges of unknown
  /// tokens, an unknown pre-tokenizer, limits of base/bounds.h.
  static Result<std::unique_ptr<Tokenizer>> make(Vocabulary vocabulary);

  /// text: at most bounds::kMaxTextBytes.
  std::vector<std::int32_t> encode(std::string_view text, EncodeOptions options = {}) const;

  /// Control and unknown tokens give their text if `render_special`, else nothing. An id outside the
  /// vocabulary gives nothing. With add_space_prefix the spaces that encode put before texts are taken away.
  std::string decode(std::span<const std::int32_t> ids, bool render_special = false) const;

  /// The bytes that one token stands for, by the same rules, with no space taken away; may end within a
  /// character.
  std::string token_bytes(std::int32_t id, bool render_special = false) const;

  /// True for EOS, EOT and the control tokens by which chat models end a turn (<|im_end|>, <end_of_turn>,
  /// ...).
  bool is_end_of_generation(std::int32_t id) const;

  std::optional<std::int32_t> bos() const { return vocabulary_.bos; }
  std::optional<std::int32_t> eos() const { return vocabulary_.eos; }
  std::int32_t size() const { return static_cast<std::int32_t>(vocabulary_.tokens.size()); }
  bool is_control(std::int32_t id) const;
  /// The control token with this text.
  std::optional<std::int32_t> control_token(std::string_view text) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  /// Bytes that this object holds.
  std::size_t memory_bytes() const;

  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

 private:
  struct Scratch {
    std::string word;
    std::vector<Symbol> symbols;
    std::vector<Merge> merges;
  };
  struct MergeSlot {
    std::int32_t left = -1;
    std::int32_t right = -1;
    std::uint32_t rank = Merge::kNever;
  };

  explicit Tokenizer(Vocabulary vocabulary);
  Status build();
  Status build_merges();
  void index_tokens();
  std::size_t merge_slot(std::int32_t left, std::int32_t right) const;

  void encode_text(std::string_view text, bool space_prefix, Scratch& scratch,
                   std::vector<std::int32_t>& out) const;
  void encode_bpe_word(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& out) const;
  void encode_sentencepiece(std::string_view text, bool space_prefix, Scratch& scratch,
                            std::vector<std::int32_t>& out) const;
  void encode_sentencepiece_word(Scratch& scratch, std::vector<std::int32_t>& out) const;
  bool is_cut_out(std::int32_t id) const;
  void append_bytes(std::string& out, std::int32_t id, bool render_special) const;

  Vocabulary vocabulary_;
  SpecialTokens special_;
  TokenIndex index_;                             ///< tokens that text may become
  std::array<std::int32_t, 256> byte_tokens_{};  ///< by byte; -1: the vocabulary has none
  std::vector<std::int32_t> end_of_generation_;  ///< sorted

  // BPE
  std::optional<PreTokenizer> pre_tokenizer_;
  std::vector<MergeSlot> merge_slots_;       ///< open addressing by (left, right)
  std::vector<std::int32_t> merge_results_;  ///< by rank

  // SentencePiece
  std::bitset<65536> inside_;      ///< byte pairs that stand within some token: others need no look-up
  std::bitset<256> before_space_;  ///< bytes that stand before U+2581 within some token
};

/// Turns token ids into text as they come, holding back bytes until their character is complete.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool render_special = false)
      : tokenizer_(&tokenizer), render_special_(render_special) {}

  /// The text that this token completes; may be empty. Bytes that can no longer become well-formed UTF-8 are
  /// passed on as they are, so that the pieces together are what decode gives (but for a space taken away by
  /// add_space_prefix).
  std::string push(std::int32_t id);
  /// The bytes that are still held back.
  std::string finish() { return std::move(held_); }

 private:
  const Tokenizer* tokenizer_;
  bool render_special_;
  std::string held_;
};

}  // namespace fieldprint::tokenizer
