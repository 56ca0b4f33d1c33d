#pragma once

#include <algorithm>
#include <string_view>

#include "base/utf8.h"

namespace fieldprint::anchor {

/// Takes "KEY VALUE\n" off `rest` and gives VALUE.
inline bool take_line(std::string_view& rest, std::string_view key, std::string_view& value) {
  if (!rest.starts_with(key)) return false;
  const std::size_t end = rest.find('\n');
  if (end == std::string_view::npos) return false;
  value = rest.substr(key.size(), end - key.size());
  rest.remove_prefix(end + 1);
  return true;
}

/// UTF-8 without control characters.
inline bool is_line(std::string_view text) {
  return valid_utf8(text) && std::none_of(text.begin(), text.end(), [](char c) {
           return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
         });
}

}  // namespace fieldprint::anchor
