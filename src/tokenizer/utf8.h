#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/utf8.h"

namespace fieldprint::tokenizer::utf8 {

/// True if `text` (fewer than 4 bytes are looked at) could become a well-formed character by appending bytes.
inline bool is_incomplete(std::string_view text) {
  if (text.empty() || text.size() > 3 || utf8_character(text) != 0) return false;
  // The smallest and the largest continuation decide: every admissible second byte range ends in one of them.
  for (const char fill : {'\x80', '\x90', '\xa0', '\xbf'}) {
    for (std::size_t length = text.size() + 1; length <= 4; ++length) {
      std::string whole(text);
      whole.append(length - text.size(), fill);
      if (utf8_character(whole) == length) return true;
    }
  }
  return false;
}

inline void append(std::string& out, std::uint32_t code_point) {
  const auto byte = [&](std::uint32_t value) { out.push_back(static_cast<char>(value)); };
  if (code_point < 0x80) {
    byte(code_point);
  } else if (code_point < 0x800) {
    byte(0xc0 | code_point >> 6);
    byte(0x80 | (code_point & 0x3f));
  } else {
    byte(0xe0 | code_point >> 12);
    byte(0x80 | (code_point >> 6 & 0x3f));
    byte(0x80 | (code_point & 0x3f));
  }
}

}  // namespace fieldprint::tokenizer::utf8
