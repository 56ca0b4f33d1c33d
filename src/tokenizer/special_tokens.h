#pragma once

#include <bitset>
#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer/vocabulary.h"

namespace fieldprint::tokenizer {

/// Finds the tokens that are cut out of the text before anything else: user-defined ones always, control and
/// unknown ones on request. The order is llama.cpp's: the longest token first, wherever it stands, then the
/// next longest in what is left; of equally long ones the lower id, from left to right.
class SpecialTokens {
 public:
  /// A stretch of the text: a special token, or (token < 0) text between them.
  struct Piece {
    std::size_t begin;
    std::size_t end;
    std::int32_t token;
  };

  /// `vocabulary` must outlive this object.
  explicit SpecialTokens(const Vocabulary& vocabulary);

  /// The pieces in order, none of them empty; together they are `text`.
  std::vector<Piece> split(std::string_view text, bool parse_special) const;

  std::size_t memory_bytes() const { return entries_.size() * sizeof(Entry); }

 private:
  struct Entry {
    std::int32_t token;
    std::int32_t prefix;  ///< the longest entry that this one's text begins with, -1: none
    bool always;          ///< user-defined
  };

  std::string_view text_of(const Entry& entry) const {
    return vocabulary_->tokens[static_cast<std::size_t>(entry.token)];
  }
  std::int32_t longest_at(std::string_view text) const;
  std::int32_t allowed(std::int32_t entry, bool parse_special) const;

  const Vocabulary* vocabulary_;
  std::vector<Entry> entries_;  ///< sorted by text
  std::bitset<65536> starts_;   ///< by the first two bytes of a text
};

}  // namespace fieldprint::tokenizer
