#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fieldprint {

/// Standard Base 64 with padding (RFC 4648 §4).
std::string base64_encode(std::span<const std::uint8_t> bytes);

/// The one inverse of base64_encode: nothing for other characters, missing padding or non-zero spare bits, so
/// that no two texts stand for the same bytes.
std::optional<std::vector<std::uint8_t>> base64_decode(std::string_view text);

}  // namespace fieldprint
