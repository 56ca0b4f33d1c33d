#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cbor/cbor.h"
#include "commit/fields.h"

namespace fieldprint::commit {

using cbor::CborReader;
using cbor::CborWriter;

/// How each type of field is written. Values are in the format's limits (find_malformed) before they get
/// here.
namespace detail {

inline void put(CborWriter& w, std::uint32_t value) { w.unsigned_integer(value); }
inline void put(CborWriter& w, std::uint64_t value) { w.unsigned_integer(value); }
inline void put(CborWriter& w, std::int32_t value) { w.integer(value); }
inline void put(CborWriter& w, float value) { w.single(value); }
inline void put(CborWriter& w, bool value) { w.unsigned_integer(value ? 1 : 0); }
inline void put(CborWriter& w, const RecordName& name) { w.text(name.text); }
inline void put(CborWriter& w, const std::string& value) { w.text(value); }
inline void put(CborWriter& w, const Digest& value) { w.byte_string(value); }
inline void put(CborWriter& w, const Bytes& value) { w.byte_string(value); }
inline void put(CborWriter& w, core::FinishReason value) {
  w.unsigned_integer(static_cast<std::uint64_t>(value));
}
void put(CborWriter& w, const TokenIds& tokens);          ///< a byte string of LEB128 numbers
void put(CborWriter& w, const core::BlockRecord& block);  ///< [segment, index, tokens, digest]

/// What stands in the ledger for an encoding that is longer than a leaf may be: {"record": `record`, unless
/// that is empty, "body_bytes": its length, "body_digest": its SHA-256}.
Bytes digest_leaf(std::string_view record, std::span<const std::uint8_t> encoding);

template <HasFields T>
void put(CborWriter& w, const T& value);

template <class T>
void put(CborWriter& w, const std::vector<T>& items) {
  w.array(items.size());
  for (const T& item : items) put(w, item);
}

template <class T>
Bytes encoded(const T& value) {
  CborWriter writer;
  put(writer, value);
  return writer.take();
}

/// Keys in the order of their encodings, bytewise (RFC 8949 §4.2.1).
template <HasFields T>
void put(CborWriter& w, const T& value) {
  std::vector<std::pair<Bytes, Bytes>> entries;
  for_each_field(value, [&](const char* name, const auto& member) {
    entries.emplace_back(encoded(std::string(name)), encoded(member));
  });
  std::sort(entries.begin(), entries.end());
  w.map(entries.size());
  for (const auto& [key, encoded_value] : entries) {
    w.append(key);
    w.append(encoded_value);
  }
}

}  // namespace detail
}  // namespace fieldprint::commit
