#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace fieldprint {

/// The last second that four digits can name: 9999-12-31T23:59:59Z.
inline constexpr std::int64_t kLastUtcSecond = 253402300799;

/// Seconds since 1970 as RFC 3339 UTC, "2026-11-25T21:14:28Z". In 0 … kLastUtcSecond.
std::string format_utc(std::int64_t seconds);

/// The inverse, strict: nothing but that form, from 1970 to 9999.
std::optional<std::int64_t> parse_utc(std::string_view text);

/// The system's clock.
std::int64_t utc_now();

}  // namespace fieldprint
