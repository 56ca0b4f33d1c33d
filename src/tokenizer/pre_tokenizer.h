#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace fieldprint::tokenizer {

/// Cuts text into the words within which byte-level BPE merges, with the regular expressions that the models'
/// own tokenizers use (`tokenizer.json` of each model; names as in GGUF's `tokenizer.ggml.pre`). Unicode
/// properties are those of the PCRE2 that it is linked with: two machines cut text alike where
/// unicode_version() is the same, and elsewhere may differ at characters that one of them does not know.
class PreTokenizer {
 public:
  /// Errors: a name that is not known (the message lists the known ones); a PCRE2 without Unicode.
  static Result<PreTokenizer> make(std::string_view name);

  /// Calls `emit` with the words of `text` in order; together they are `text`. A run of bytes that are not
  /// well-formed UTF-8 is a word of its own. Safe to call from several threads.
  void split(std::string_view text, const std::function<void(std::string_view)>& emit) const;

  /// A word that is a token as a whole is that token, whatever the merges say (Llama 3, Tekken).
  bool whole_words_first() const { return whole_words_first_; }

  /// Sequences begin with BOS unless the file says otherwise.
  static bool expects_bos(std::string_view name);

  PreTokenizer(PreTokenizer&&) noexcept;
  PreTokenizer& operator=(PreTokenizer&&) noexcept;
  ~PreTokenizer();

 private:
  struct Stage;
  struct Match;
  PreTokenizer();
  void split_stage(std::size_t stage, std::string_view text, Match& match,
                   const std::function<void(std::string_view)>& emit) const;

  std::vector<Stage> stages_;
  bool whole_words_first_ = false;
};

/// The version of Unicode whose properties PCRE2 has here, as "14.0.0".
std::string unicode_version();

}  // namespace fieldprint::tokenizer
