#pragma once

#include <string>
#include <string_view>

#include "tokenizer/byte_map.h"
#include "tokenizer/vocabulary.h"

/// Vocabularies of a few hundred tokens for tests, fuzzers and benchmarks, with every kind of token.
namespace fieldprint::tokenizer::small {

inline std::int32_t add(Vocabulary& vocabulary, std::string_view text, TokenType type, float score = 0) {
  vocabulary.tokens.push_back(text);
  vocabulary.types.push_back(type);
  if (vocabulary.kind == Kind::kSentencePiece) vocabulary.scores.push_back(score);
  return static_cast<std::int32_t>(vocabulary.tokens.size()) - 1;
}

inline void add_controls(Vocabulary& vocabulary) {
  for (const char* text : {"<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>",
                           "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}) {
    add(vocabulary, text, TokenType::kControl);
  }
}

/// Byte-level BPE: <unk> 0, <s> 1, </s> 2, the controls of the chat formats, all bytes, a few merges,
/// user-defined
/// "<tool>", "<tool><tool>" and a raw "\u00e9".
inline Vocabulary byte_level() {
  Vocabulary out;
  out.kind = Kind::kBpe;
  out.architecture = "llama";
  out.pre_tokenizer = "smollm";
  out.unk = add(out, "<unk>", TokenType::kUnknown);
  out.bos = add(out, "<s>", TokenType::kControl);
  out.eos = add(out, "</s>", TokenType::kControl);
  add_controls(out);
  for (unsigned byte = 0; byte < 256; ++byte) {
    std::string image;
    append_image(image, static_cast<std::uint8_t>(byte));
    add(out, image, TokenType::kNormal);
  }
  for (const char* text : {"<tool>", "<tool><tool>", "\u00e9"}) add(out, text, TokenType::kUserDefined);
  for (const char* merge :
       {"h e", "l l", "he ll", "hell o", "\u0120 hello", "a a", "aa aa", "\u00c3 \u00a9", "< |", "i m"}) {
    const std::string_view pair(merge);
    const std::size_t space = pair.find(' ');
    out.merges.push_back(pair);
    add(out, std::string(pair.substr(0, space)).append(pair.substr(space + 1)), TokenType::kNormal);
  }
  return out;
}

/// SentencePiece: <unk> 0, <s> 1, </s> 2, the controls, byte tokens, letters and a few pieces; pieces that
/// would spell the control token <s> by merging; user-defined runs of spaces and new lines.
inline Vocabulary sentencepiece() {
  Vocabulary out;
  out.kind = Kind::kSentencePiece;
  out.architecture = "gemma3";
  out.unk = add(out, "<unk>", TokenType::kUnknown);
  out.bos = add(out, "<s>", TokenType::kControl);
  out.eos = add(out, "</s>", TokenType::kControl);
  out.add_bos = true;
  add_controls(out);
  for (unsigned byte = 0; byte < 256; ++byte) {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    add(out, std::string("<0x") + kDigits[byte / 16] + kDigits[byte % 16] + '>', TokenType::kByte);
  }
  for (const char* text : {"  ", "   ", "\n", "\n\n", "<tool>"})
    add(out, text, TokenType::kUserDefined, -1000);
  for (char letter = 'a'; letter <= 'z'; ++letter) add(out, std::string(1, letter), TokenType::kNormal, -100);
  float score = -1;
  for (const char* text :
       {"he", "ll", "hell", "hello", "\u2581h", "\u2581hello", "or", "\u2581w", "\u2581wor", "ld", "aa",
        "aaaa", "<s", "o\u2581w", "\u2581", "\u00e9", "<", ">", "s>"}) {
    add(out, text, TokenType::kNormal, score--);
  }
  return out;
}

}  // namespace fieldprint::tokenizer::small
