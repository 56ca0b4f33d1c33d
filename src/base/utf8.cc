#include "base/utf8.h"

#include <cstddef>
#include <cstdint>

namespace fieldprint {
namespace {

// What may follow a lead byte: how many bytes, and the range of the first of them.
struct Lead {
  std::size_t following;
  std::uint8_t low;
  std::uint8_t high;
};

constexpr Lead kNotALead = {0, 1, 0};

Lead lead_of(std::uint8_t byte) {
  if (byte >= 0xc2 && byte <= 0xdf) return {1, 0x80, 0xbf};
  if (byte == 0xe0) return {2, 0xa0, 0xbf};
  if (byte == 0xed) return {2, 0x80, 0x9f};
  if (byte >= 0xe1 && byte <= 0xef) return {2, 0x80, 0xbf};
  if (byte == 0xf0) return {3, 0x90, 0xbf};
  if (byte >= 0xf1 && byte <= 0xf3) return {3, 0x80, 0xbf};
  if (byte == 0xf4) return {3, 0x80, 0x8f};
  return kNotALead;
}

}  // namespace

bool valid_utf8(std::string_view text) {
  const auto at = [text](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  for (std::size_t i = 0; i < text.size();) {
    if (at(i) < 0x80) {
      ++i;
      continue;
    }
    const Lead lead = lead_of(at(i));
    if (lead.following == 0 || text.size() - i <= lead.following) return false;
    if (at(i + 1) < lead.low || at(i + 1) > lead.high) return false;
    for (std::size_t k = 2; k <= lead.following; ++k) {
      if ((at(i + k) & 0xc0) != 0x80) return false;
    }
    i += lead.following + 1;
  }
  return true;
}

}  // namespace fieldprint
