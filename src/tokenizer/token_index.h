#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "tokenizer/vocabulary.h"

namespace fieldprint::tokenizer {

/// Finds a token by its text. Open addressing over token ids: 4 bytes a slot, at most half full.
class TokenIndex {
 public:
  static constexpr std::int32_t kNone = -1;

  /// `texts` must outlive the index.
  TokenIndex(const TextArena& texts, std::size_t capacity)
      : texts_(&texts), slots_(std::bit_ceil(2 * capacity + 1), kNone) {}

  /// Of tokens with equal texts the first one added stays.
  void add(std::int32_t token) {
    std::int32_t& slot = slots_[find_slot((*texts_)[static_cast<std::size_t>(token)])];
    if (slot == kNone) slot = token;
  }

  /// The token, or kNone.
  std::int32_t find(std::string_view text) const { return slots_[find_slot(text)]; }

  std::size_t memory_bytes() const { return slots_.size() * sizeof(std::int32_t); }

 private:
  static std::uint64_t hash(std::string_view text) {
    constexpr std::uint64_t kMultiplier = 0x9e3779b97f4a7c15;
    std::uint64_t h = text.size() * kMultiplier;
    while (!text.empty()) {
      std::uint64_t word = 0;
      const std::size_t count = text.size() < 8 ? text.size() : 8;
      std::memcpy(&word, text.data(), count);
      h = (h ^ word) * kMultiplier;
      h ^= h >> 32;
      text.remove_prefix(count);
    }
    return h;
  }

  std::size_t find_slot(std::string_view text) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = hash(text) & mask;
    while (slots_[at] != kNone && (*texts_)[static_cast<std::size_t>(slots_[at])] != text)
      at = (at + 1) & mask;
    return at;
  }

  const TextArena* texts_;
  std::vector<std::int32_t> slots_;
};

}  // namespace fieldprint::tokenizer
