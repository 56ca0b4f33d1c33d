#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/bounds.h"
#include "base/check.h"
#include "tokenizer/byte_map.h"
#include "tokenizer/utf8.h"

namespace fieldprint::tokenizer {
namespace {

constexpr std::string_view kSpace = "\xe2\x96\x81";  // U+2581, SentencePiece's visible space
constexpr std::int32_t kUnresolved = -2;             // a single character whose token has not been looked up

// Texts by which chat models end a turn; llama.cpp recognises them too where the file gives no id.
constexpr std::string_view kTurnEnds[] = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>",      "<|end_of_text|>",
    "<|eom_id|>", "<EOT>",      "_<EOT>",  "[EOT]",         "<end_of_utterance>",
};
// Some conversions give these the wrong type; as user-defined tokens they could be written by anyone.
constexpr std::string_view kTurnStarts[] = {
    "<|im_start|>",      "<start_of_turn>",   "<|start_header_id|>",
    "<|end_header_id|>", "<|begin_of_text|>", "<bos>",
};

std::size_t at(std::int32_t id) { return static_cast<std::size_t>(id); }
std::uint8_t byte(char c) { return static_cast<std::uint8_t>(c); }

bool contains(std::span<const std::string_view> texts, std::string_view text) {
  return std::find(texts.begin(), texts.end(), text) != texts.end();
}

/// A byte token's text is "<0xNN>".
std::optional<std::uint8_t> byte_of(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
  };
  const int high = digit(text[3]);
  const int low = digit(text[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<std::uint8_t>(16 * high + low);
}

/// Orders scores as unsigned integers, the highest score first.
std::uint32_t priority_of(float score) {
  const auto bits = std::bit_cast<std::uint32_t>(score + 0.0f);  // -0 and 0 are equal
  const std::uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return ~ascending;
}

Status check_shape(const Vocabulary& v) {
  const std::size_t tokens = v.tokens.size();
  if (tokens == 0) return caller_error("vocabulary: it has no tokens");
  if (tokens > static_cast<std::size_t>(bounds::kMaxVocab)) {
    return caller_error(
        fmt::format("vocabulary: {} tokens exceed the limit of {}", tokens, bounds::kMaxVocab));
  }
  if (v.types.size() != tokens) {
    return caller_error(fmt::format("vocabulary: {} token types for {} tokens", v.types.size(), tokens));
  }
  if (v.scores.size() != tokens && (v.kind == Kind::kSentencePiece || !v.scores.empty())) {
    return caller_error(fmt::format("vocabulary: {} scores for {} tokens", v.scores.size(), tokens));
  }
  for (std::size_t i = 0; i < tokens; ++i) {
    if (v.tokens[i].size() > static_cast<std::size_t>(bounds::kMaxTokenBytes)) {
      return caller_error(
          fmt::format("vocabulary: token {} is longer than {} bytes", i, bounds::kMaxTokenBytes));
    }
    if (!v.scores.empty() && !std::isfinite(v.scores[i])) {
      return caller_error(fmt::format("vocabulary: the score of token {} is not a finite number", i));
    }
  }
  for (const auto& id : {v.bos, v.eos, v.eot, v.unk, v.pad}) {
    if (id && (*id < 0 || at(*id) >= tokens)) {
      return caller_error(fmt::format("vocabulary: special token id {} is not below {}", *id, tokens));
    }
  }
  if (v.add_bos && !v.bos) return caller_error("vocabulary: add_bos is set, but there is no bos token");
  return {};
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::make(Vocabulary vocabulary) {
  if (Status shape = check_shape(vocabulary); !shape) return shape.error();
  for (std::size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const std::string_view text = vocabulary.tokens[i];
    if (contains(kTurnEnds, text) || contains(kTurnStarts, text)) vocabulary.types[i] = TokenType::kControl;
  }
  std::unique_ptr<Tokenizer> out(new Tokenizer(std::move(vocabulary)));
  if (Status built = out->build(); !built) return built.error();
  return out;
}

Tokenizer::Tokenizer(Vocabulary vocabulary)
    : vocabulary_(std::move(vocabulary)),
      special_(vocabulary_),
      index_(vocabulary_.tokens, vocabulary_.tokens.size()) {
  byte_tokens_.fill(-1);
}

Status Tokenizer::build() {
  index_tokens();
  for (std::size_t i = 0; i < vocabulary_.tokens.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    const bool ends = contains(kTurnEnds, vocabulary_.tokens[i]);
    if (ends || id == vocabulary_.eos || id == vocabulary_.eot) end_of_generation_.push_back(id);
  }
  if (vocabulary_.kind == Kind::kSentencePiece) return {};

  auto pre_tokenizer = PreTokenizer::make(vocabulary_.pre_tokenizer);
  if (!pre_tokenizer) return pre_tokenizer.error();
  pre_tokenizer_ = std::move(*pre_tokenizer);
  return build_merges();
}

void Tokenizer::index_tokens() {
  const bool bpe = vocabulary_.kind == Kind::kBpe;
  for (std::size_t i = 0; i < vocabulary_.tokens.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    const std::string_view text = vocabulary_.tokens[i];
    const TokenType type = vocabulary_.types[i];
    if (type == TokenType::kByte && !bpe) {
      if (const auto value = byte_of(text)) byte_tokens_[*value] = id;
    }
    if (type == TokenType::kControl || type == TokenType::kUnknown || type == TokenType::kByte) continue;
    // A user-defined token is written as it is, other BPE tokens in the byte map: only where both readings
    // agree may merges give it.
    if (text.empty() || (bpe && type == TokenType::kUserDefined && !is_its_own_image(text))) continue;
    index_.add(id);
    if (bpe) continue;
    for (std::size_t j = 1; j < text.size(); ++j) {
      inside_.set(static_cast<std::size_t>(byte(text[j - 1])) << 8 | byte(text[j]));
      if (text.substr(j).starts_with(kSpace)) before_space_.set(byte(text[j - 1]));
    }
  }
  if (!bpe) return;
  for (unsigned value = 0; value < 256; ++value) {
    std::string image;
    append_image(image, static_cast<std::uint8_t>(value));
    byte_tokens_[value] = index_.find(image);
  }
}

Status Tokenizer::build_merges() {
  const TextArena& merges = vocabulary_.merges;
  if (merges.size() > static_cast<std::size_t>(bounds::kMaxMerges)) {
    return caller_error(
        fmt::format("vocabulary: {} merges exceed the limit of {}", merges.size(), bounds::kMaxMerges));
  }
  merge_slots_.resize(std::bit_ceil(merges.size() + merges.size() / 2 + 1));
  merge_results_.reserve(merges.size());
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const std::string_view merge = merges[rank];
    const std::size_t space = merge.find(' ', 1);
    if (space == std::string_view::npos) {
      return caller_error(fmt::format("vocabulary: merge {} (\"{}\") is not two texts", rank, merge));
    }
    const std::string_view left_text = merge.substr(0, space);
    const std::string_view right_text = merge.substr(space + 1);
    const std::int32_t left = index_.find(left_text);
    const std::int32_t right = index_.find(right_text);
    const std::int32_t result = index_.find(std::string(left_text).append(right_text));
    if (left < 0 || right < 0 || result < 0) {
      return caller_error(
          fmt::format("vocabulary: merge {} (\"{}\") names a text that is no token", rank, merge));
    }
    merge_results_.push_back(result);
    MergeSlot& slot = merge_slots_[merge_slot(left, right)];
    if (slot.left < 0) slot = {left, right, static_cast<std::uint32_t>(rank)};
  }
  return {};
}

std::size_t Tokenizer::merge_slot(std::int32_t left, std::int32_t right) const {
  const std::size_t mask = merge_slots_.size() - 1;
  const std::uint64_t key = static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint32_t>(right);
  std::size_t slot = (key * 0x9e3779b97f4a7c15) >> 20 & mask;
  while (merge_slots_[slot].left >= 0 &&
         (merge_slots_[slot].left != left || merge_slots_[slot].right != right)) {
    slot = (slot + 1) & mask;
  }
  return slot;
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  CHECK(text.size() <= static_cast<std::size_t>(bounds::kMaxTextBytes), "{} bytes of text", text.size());
  std::vector<std::int32_t> out;
  out.reserve(text.size() / 4 + 1);
  if (options.add_bos && !options.continues && vocabulary_.add_bos) out.push_back(*vocabulary_.bos);
  Scratch scratch;
  bool space_prefix = vocabulary_.add_space_prefix && !options.continues;
  for (const SpecialTokens::Piece& piece : special_.split(text, options.parse_special)) {
    if (piece.token >= 0) {
      out.push_back(piece.token);
    } else {
      encode_text(text.substr(piece.begin, piece.end - piece.begin), space_prefix, scratch, out);
    }
    space_prefix = vocabulary_.add_space_prefix && piece.token >= 0;
  }
  return out;
}

void Tokenizer::encode_text(std::string_view text, bool space_prefix, Scratch& scratch,
                            std::vector<std::int32_t>& out) const {
  if (vocabulary_.kind == Kind::kSentencePiece) return encode_sentencepiece(text, space_prefix, scratch, out);
  pre_tokenizer_->split(text, [&](std::string_view word) { encode_bpe_word(word, scratch, out); });
}

void Tokenizer::encode_bpe_word(std::string_view word, Scratch& scratch,
                                std::vector<std::int32_t>& out) const {
  if (pre_tokenizer_->whole_words_first()) {
    scratch.word.clear();
    for (const char c : word) append_image(scratch.word, byte(c));
    if (const std::int32_t whole = index_.find(scratch.word); whole >= 0) return out.push_back(whole);
  }
  scratch.symbols.clear();
  for (std::size_t i = 0; i < word.size(); ++i) {
    scratch.symbols.push_back({static_cast<std::uint32_t>(i), 1, byte_tokens_[byte(word[i])]});
  }
  merge_symbols(scratch.symbols, scratch.merges, [&](const Symbol& left, const Symbol& right) -> Merge {
    if (left.token < 0 || right.token < 0) return {};
    const std::uint32_t rank = merge_slots_[merge_slot(left.token, right.token)].rank;
    return rank == Merge::kNever ? Merge{} : Merge{rank, merge_results_[rank]};
  });
  for (const Symbol& symbol : scratch.symbols) {
    if (symbol.token >= 0) out.push_back(symbol.token);
  }
}

/// Words end where no token can reach across: before a space whose left neighbour never stands before one in
/// a token. Cutting there changes nothing but keeps the words short.
void Tokenizer::encode_sentencepiece(std::string_view text, bool space_prefix, Scratch& scratch,
                                     std::vector<std::int32_t>& out) const {
  std::string& word = scratch.word;
  word.clear();
  if (space_prefix) word = kSpace;
  for (const char c : text) {
    if (c != ' ') {
      word.push_back(c);
      continue;
    }
    if (!word.empty() && !before_space_.test(byte(word.back()))) {
      encode_sentencepiece_word(scratch, out);
      word.clear();
    }
    word += kSpace;
  }
  if (!word.empty()) encode_sentencepiece_word(scratch, out);
}

void Tokenizer::encode_sentencepiece_word(Scratch& scratch, std::vector<std::int32_t>& out) const {
  const std::string_view word = scratch.word;
  scratch.symbols.clear();
  for (std::size_t i = 0; i < word.size();) {
    const std::size_t length = std::max<std::size_t>(utf8_character(word.substr(i, 4)), 1);
    scratch.symbols.push_back(
        {static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(length), kUnresolved});
    i += length;
  }
  merge_symbols(scratch.symbols, scratch.merges, [&](const Symbol& left, const Symbol& right) -> Merge {
    if (!inside_.test(static_cast<std::size_t>(byte(word[right.begin - 1])) << 8 | byte(word[right.begin])))
      return {};
    const std::int32_t token = index_.find(word.substr(left.begin, left.length + right.length));
    return token < 0 ? Merge{} : Merge{priority_of(vocabulary_.scores[at(token)]), token};
  });
  for (const Symbol& symbol : scratch.symbols) {
    const std::string_view text = word.substr(symbol.begin, symbol.length);
    const std::int32_t token = symbol.token == kUnresolved ? index_.find(text) : symbol.token;
    if (token >= 0) {
      out.push_back(token);
      continue;
    }
    // A vocabulary without U+2581 spells the space that it stands for.
    for (const char c : text == kSpace ? std::string_view(" ") : text) {
      const std::int32_t spelled = byte_tokens_[byte(c)];
      if (spelled >= 0) {
        out.push_back(spelled);
      } else if (vocabulary_.unk) {
        out.push_back(*vocabulary_.unk);
      }
    }
  }
}

void Tokenizer::append_bytes(std::string& out, std::int32_t id, bool render_special) const {
  if (id < 0 || id >= size()) return;
  const std::string_view text = vocabulary_.tokens[at(id)];
  const TokenType type = vocabulary_.types[at(id)];
  if (type == TokenType::kControl || type == TokenType::kUnknown) {
    if (render_special) out += text;
    return;
  }
  if (vocabulary_.kind == Kind::kBpe) {
    if (type == TokenType::kUserDefined) {
      out += text;
    } else {
      append_original(out, text);
    }
    return;
  }
  if (type == TokenType::kByte) {
    if (const auto value = byte_of(text)) out.push_back(static_cast<char>(*value));
    return;
  }
  for (std::size_t i = 0; i < text.size();) {
    const bool space = text.substr(i).starts_with(kSpace);
    out.push_back(space ? ' ' : text[i]);
    i += space ? kSpace.size() : 1;
  }
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool render_special) const {
  std::string out;
  bool space_prefix = vocabulary_.add_space_prefix;
  for (const std::int32_t id : ids) {
    const std::size_t before = out.size();
    append_bytes(out, id, render_special);
    const bool cut_out = is_cut_out(id);
    if (space_prefix && !cut_out && out.size() > before && out[before] == ' ') out.erase(before, 1);
    space_prefix = vocabulary_.add_space_prefix && cut_out;
  }
  return out;
}

std::string Tokenizer::token_bytes(std::int32_t id, bool render_special) const {
  std::string out;
  append_bytes(out, id, render_special);
  return out;
}

bool Tokenizer::is_end_of_generation(std::int32_t id) const {
  return std::binary_search(end_of_generation_.begin(), end_of_generation_.end(), id);
}

bool Tokenizer::is_control(std::int32_t id) const {
  return id >= 0 && id < size() && vocabulary_.types[at(id)] == TokenType::kControl;
}

std::optional<std::int32_t> Tokenizer::control_token(std::string_view text) const {
  const auto pieces = special_.split(text, true);
  if (pieces.size() != 1 || !is_control(pieces[0].token)) return std::nullopt;
  return pieces[0].token;
}

/// True for tokens that encode cuts out of the text before anything else.
bool Tokenizer::is_cut_out(std::int32_t id) const {
  if (id < 0 || id >= size()) return false;
  const TokenType type = vocabulary_.types[at(id)];
  return type == TokenType::kControl || type == TokenType::kUnknown || type == TokenType::kUserDefined;
}

std::size_t Tokenizer::memory_bytes() const {
  const auto arena = [](const TextArena& texts) { return texts.byte_count() + 4 * texts.size(); };
  return sizeof(*this) + arena(vocabulary_.tokens) + arena(vocabulary_.merges) +
         4 * vocabulary_.scores.size() + vocabulary_.types.size() + index_.memory_bytes() +
         special_.memory_bytes() + merge_slots_.size() * sizeof(MergeSlot) + 4 * merge_results_.size() +
         vocabulary_.chat_template.size();
}

std::string StreamDecoder::push(std::int32_t id) {
  held_ += tokenizer_->token_bytes(id, render_special_);
  // Only the last three bytes can belong to a character that is still to be completed.
  const std::size_t first = held_.size() > 3 ? held_.size() - 3 : 0;
  std::size_t cut = held_.size();
  for (std::size_t i = first; i < held_.size(); ++i) {
    if (utf8::is_incomplete(std::string_view(held_).substr(i))) {
      cut = i;
      break;
    }
  }
  std::string out = held_.substr(0, cut);
  held_.erase(0, cut);
  return out;
}

}  // namespace fieldprint::tokenizer
