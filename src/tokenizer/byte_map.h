#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fieldprint::tokenizer {

/// GPT-2's map of bytes to printable characters (openai/gpt-2, encoder.py, bytes_to_unicode): printable
/// Latin-1 bytes are themselves, the other 68 are U+0100 and on, in order. Byte-level BPE vocabularies are
/// written in it.

/// Appends the UTF-8 of the character that stands for `byte`.
void append_image(std::string& out, std::uint8_t byte);

/// Appends the bytes that `text` stands for; characters outside the map pass through.
void append_original(std::string& out, std::string_view text);

/// True if every byte of `text` is mapped to itself as UTF-8, so that text and image are equal.
bool is_its_own_image(std::string_view text);

}  // namespace fieldprint::tokenizer
