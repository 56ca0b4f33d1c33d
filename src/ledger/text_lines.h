#pragma once

#include <charconv>
#include <cstdint>
#include <optional>
#include <string_view>

/// What the line-based formats of C2SP share.
namespace fieldprint::ledger {

/// Takes the next line off `text`, without its newline; nothing if no whole line is left.
inline std::optional<std::string_view> next_line(std::string_view& text) {
  const std::size_t end = text.find('\n');
  if (end == std::string_view::npos) return std::nullopt;
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end + 1);
  return line;
}

/// A decimal number without leading zeros, the whole of `text`.
inline bool parse_decimal(std::string_view text, std::uint64_t& value) {
  if (text.empty() || (text.size() > 1 && text.front() == '0')) return false;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace fieldprint::ledger
