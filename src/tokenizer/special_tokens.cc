#include "tokenizer/special_tokens.h"

#include <algorithm>
#include <map>

namespace fieldprint::tokenizer {
namespace {

std::size_t first_two(std::string_view text) {
  return static_cast<std::size_t>(static_cast<std::uint8_t>(text[0])) << 8 |
         static_cast<std::size_t>(static_cast<std::uint8_t>(text[1]));
}

std::vector<SpecialTokens::Piece> with_text_between(const std::vector<SpecialTokens::Piece>& found,
                                                    std::size_t size) {
  std::vector<SpecialTokens::Piece> pieces;
  std::size_t from = 0;
  for (const SpecialTokens::Piece& piece : found) {
    if (piece.begin > from) pieces.push_back({from, piece.begin, -1});
    pieces.push_back(piece);
    from = piece.end;
  }
  if (from < size) pieces.push_back({from, size, -1});
  return pieces;
}

}  // namespace

SpecialTokens::SpecialTokens(const Vocabulary& vocabulary) : vocabulary_(&vocabulary) {
  for (std::size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    const TokenType type = vocabulary.types[i];
    const bool always = type == TokenType::kUserDefined;
    if (!always && type != TokenType::kControl && type != TokenType::kUnknown) continue;
    if (vocabulary.tokens[i].empty()) continue;
    entries_.push_back({static_cast<std::int32_t>(i), -1, always});
  }
  std::sort(entries_.begin(), entries_.end(), [&](const Entry& a, const Entry& b) {
    return text_of(a) != text_of(b) ? text_of(a) < text_of(b) : a.token < b.token;
  });
  const auto same = [&](const Entry& a, const Entry& b) { return text_of(a) == text_of(b); };
  entries_.erase(std::unique(entries_.begin(), entries_.end(), same), entries_.end());
  // In sorted order all prefixes of a text stand before it, nested: a stack of the open ones finds the
  // longest.
  std::vector<std::int32_t> open;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const std::string_view text = text_of(entries_[i]);
    while (!open.empty() && !text.starts_with(text_of(entries_[static_cast<std::size_t>(open.back())]))) {
      open.pop_back();
    }
    entries_[i].prefix = open.empty() ? -1 : open.back();
    open.push_back(static_cast<std::int32_t>(i));
    if (text.size() > 1) {
      starts_.set(first_two(text));
    } else {
      for (std::size_t second = 0; second < 256; ++second) {
        starts_.set(static_cast<std::size_t>(static_cast<std::uint8_t>(text[0])) << 8 | second);
      }
    }
  }
}

/// The longest entry that `text` begins with, or -1: narrows the sorted entries byte by byte.
std::int32_t SpecialTokens::longest_at(std::string_view text) const {
  if (text.size() > 1 && !starts_.test(first_two(text))) return -1;
  auto low = entries_.begin();
  auto high = entries_.end();
  std::int32_t best = -1;
  for (std::size_t depth = 0; depth < text.size() && low != high; ++depth) {
    const auto byte_at = [&](const Entry& entry) {
      return static_cast<int>(static_cast<std::uint8_t>(text_of(entry)[depth]));
    };
    const int wanted = static_cast<std::uint8_t>(text[depth]);
    low = std::lower_bound(low, high, wanted, [&](const Entry& e, int byte) { return byte_at(e) < byte; });
    high = std::upper_bound(low, high, wanted, [&](int byte, const Entry& e) { return byte < byte_at(e); });
    if (low != high && text_of(*low).size() == depth + 1) {
      best = static_cast<std::int32_t>(low - entries_.begin());
      ++low;  // it ends here; the others go on
    }
  }
  return best;
}

std::int32_t SpecialTokens::allowed(std::int32_t entry, bool parse_special) const {
  while (entry >= 0 && !parse_special && !entries_[static_cast<std::size_t>(entry)].always) {
    entry = entries_[static_cast<std::size_t>(entry)].prefix;
  }
  return entry;
}

std::vector<SpecialTokens::Piece> SpecialTokens::split(std::string_view text, bool parse_special) const {
  // Candidates by (length, descending; token; position). What loses to a longer one tries its next shorter
  // prefix.
  struct Candidate {
    std::size_t begin;
    std::int32_t entry;
  };
  std::map<std::size_t, std::vector<Candidate>, std::greater<>> by_length;
  const auto propose = [&](std::size_t begin, std::int32_t entry) {
    entry = allowed(entry, parse_special);
    if (entry >= 0)
      by_length[text_of(entries_[static_cast<std::size_t>(entry)]).size()].push_back({begin, entry});
  };
  for (std::size_t at = 0; at < text.size(); ++at) propose(at, longest_at(text.substr(at)));

  std::vector<Piece> pieces;
  std::vector<bool> taken(by_length.empty() ? 0 : text.size());
  while (!by_length.empty()) {
    const auto node = by_length.extract(by_length.begin());
    const std::size_t length = node.key();
    std::vector<Candidate>& candidates = node.mapped();
    const auto token = [&](const Candidate& c) { return entries_[static_cast<std::size_t>(c.entry)].token; };
    std::sort(candidates.begin(), candidates.end(), [&](const Candidate& a, const Candidate& b) {
      return token(a) != token(b) ? token(a) < token(b) : a.begin < b.begin;
    });
    for (const Candidate& candidate : candidates) {
      // Everything taken so far is at least this long, so an overlap covers the first or the last byte.
      if (taken[candidate.begin]) continue;
      if (taken[candidate.begin + length - 1]) {
        propose(candidate.begin, entries_[static_cast<std::size_t>(candidate.entry)].prefix);
        continue;
      }
      std::fill_n(taken.begin() + static_cast<std::ptrdiff_t>(candidate.begin), length, true);
      pieces.push_back({candidate.begin, candidate.begin + length, token(candidate)});
    }
  }
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
  return with_text_between(pieces, text.size());
}

}  // namespace fieldprint::tokenizer
