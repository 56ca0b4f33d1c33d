#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace fieldprint::tokenizer::utf8 {

/// The length (1 to 4) of the well-formed UTF-8 character that `text` begins with (Unicode 15, table 3-7), or
/// 0.
inline std::size_t character(std::string_view text) {
  const auto at = [&](std::size_t i) { return i < text.size() ? static_cast<std::uint8_t>(text[i]) : 0u; };
  const auto in = [](unsigned byte, unsigned low, unsigned high) { return byte >= low && byte <= high; };
  const unsigned lead = at(0);
  if (text.empty()) return 0;
  if (lead < 0x80) return 1;
  if (in(lead, 0xc2, 0xdf)) return in(at(1), 0x80, 0xbf) ? 2 : 0;
  if (in(lead, 0xe0, 0xef)) {
    const unsigned low = lead == 0xe0 ? 0xa0 : 0x80;
    const unsigned high = lead == 0xed ? 0x9f : 0xbf;
    return in(at(1), low, high) && in(at(2), 0x80, 0xbf) ? 3 : 0;
  }
  if (in(lead, 0xf0, 0xf4)) {
    const unsigned low = lead == 0xf0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xf4 ? 0x8f : 0xbf;
    return in(at(1), low, high) && in(at(2), 0x80, 0xbf) && in(at(3), 0x80, 0xbf) ? 4 : 0;
  }
  return 0;
}

/// True if `text` (fewer than 4 bytes are looked at) could become a well-formed character by appending bytes.
inline bool is_incomplete(std::string_view text) {
  if (text.empty() || text.size() > 3 || character(text) != 0) return false;
  // The smallest and the largest continuation decide: every admissible second byte range ends in one of them.
  for (const char fill : {'\x80', '\x90', '\xa0', '\xbf'}) {
    for (std::size_t length = text.size() + 1; length <= 4; ++length) {
      std::string whole(text);
      whole.append(length - text.size(), fill);
      if (character(whole) == length) return true;
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
