#include "tokenizer/byte_map.h"

#include <algorithm>
#include <array>

#include "tokenizer/utf8.h"

namespace fieldprint::tokenizer {
namespace {

constexpr bool is_printable(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Maps {
  std::array<std::uint16_t, 256> image{};
  std::array<std::int16_t, 0x100 + 68> original{};

  constexpr Maps() {
    for (auto& byte : original) byte = -1;
    unsigned next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      const unsigned character = is_printable(byte) ? byte : next++;
      image[byte] = static_cast<std::uint16_t>(character);
      original[character] = static_cast<std::int16_t>(byte);
    }
  }
};
constexpr Maps kMaps;

}  // namespace

void append_image(std::string& out, std::uint8_t byte) { utf8::append(out, kMaps.image[byte]); }

void append_original(std::string& out, std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = std::max<std::size_t>(utf8_character(text), 1);
    const auto lead = static_cast<std::uint8_t>(text[0]);
    std::size_t character = lead;
    if (length == 2) character = (lead & 0x1fu) << 6 | (static_cast<std::uint8_t>(text[1]) & 0x3fu);
    const bool mapped = length <= 2 && (length == 2 || lead < 0x80) && character < kMaps.original.size() &&
                        kMaps.original[character] >= 0;
    if (mapped) {
      out.push_back(static_cast<char>(kMaps.original[character]));
    } else {
      out.append(text.substr(0, length));
    }
    text.remove_prefix(length);
  }
}

bool is_its_own_image(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x21 && c <= 0x7e; });
}

}  // namespace fieldprint::tokenizer
