#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

/// The part of CBOR (RFC 8949) that records need, in the core deterministic encoding of §4.2.1: shortest
/// arguments, shortest floats that keep the value, definite lengths. Map keys are put in order by the caller.
/// The bytes of each item are libcbor's; items are read one at a time, so a length that lies allocates
/// nothing.
namespace fieldprint::cbor {

class CborWriter {
 public:
  void unsigned_integer(std::uint64_t value);
  void integer(std::int64_t value);
  void single(float value);  ///< finite; written in 2 bytes if binary16 holds it exactly, else in 4
  void byte_string(std::span<const std::uint8_t> bytes);
  void text(std::string_view text);  ///< UTF-8
  void array(std::size_t count);     ///< the head; the items follow
  void map(std::size_t count);       ///< the head; keys and values follow in turn
  void append(std::span<const std::uint8_t> encoded);

  const std::vector<std::uint8_t>& bytes() const { return bytes_; }
  std::vector<std::uint8_t> take() { return std::move(bytes_); }

 private:
  template <class Encode>
  void emit(const Encode& encode);
  std::vector<std::uint8_t> bytes_;
};

class CborReader {
 public:
  explicit CborReader(std::span<const std::uint8_t> bytes) : rest_(bytes) {}

  /// Each reads the next item, which must be of that type; the error says what was there instead.
  Result<std::uint64_t> unsigned_integer();
  Result<std::int64_t> integer();
  Result<float> single();  ///< binary16 or binary32
  Result<std::span<const std::uint8_t>> byte_string();
  Result<std::string_view> text();
  Result<std::size_t> array();  ///< never more items than bytes are left
  Result<std::size_t> map();
  Status skip();  ///< over any item and all in it; nesting costs no stack

  bool at_end() const { return rest_.empty(); }

 private:
  std::span<const std::uint8_t> rest_;
};

/// The text that a map has under a key; empty if the bytes are no map with such a text. Looks no further than
/// it must, so the bytes may still be malformed.
std::string_view text_under(std::string_view key, std::span<const std::uint8_t> map);

}  // namespace fieldprint::cbor
