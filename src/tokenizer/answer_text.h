#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace fieldprint::tokenizer {

/// Turns the tokens of an answer into its text, and says when it ends: at an end-of-generation token, or
/// where a stop string is complete. Text that may be the beginning of a stop string is held back, so that no
/// part of one is ever given out.
class AnswerText {
 public:
  AnswerText(const Tokenizer& tokenizer, std::vector<std::string> stops)
      : tokenizer_(&tokenizer), decoder_(tokenizer), stops_(std::move(stops)) {}

  struct Piece {
    std::string text;    ///< can be shown now
    bool ended = false;  ///< nothing follows
  };
  /// The text that `token` completes.
  Piece push(std::int32_t token);
  /// What is still held back when an answer is cut for its length.
  Piece finish();

 private:
  Piece match(std::string_view text);
  Piece flush();

  const Tokenizer* tokenizer_;
  StreamDecoder decoder_;
  std::vector<std::string> stops_;
  std::string held_;
};

}  // namespace fieldprint::tokenizer
