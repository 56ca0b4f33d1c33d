#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "commit/encoding.h"

/// How each type of field is read: the inverses of put. Errors say what is read and name the field.
namespace fieldprint::commit::detail {

struct FieldReader {
  CborReader cbor;
  std::string_view what;  ///< "receipt"
};

/// "receipt field PATH: PROBLEM", the caller's error.
Error error_at(const FieldReader& r, const std::string& path, std::string_view problem);

/// Reads an item, and names the field if it is not what it should be.
template <class T>
Status take(const FieldReader& r, Result<T> item, const std::string& path, T& out) {
  if (!item) return error_at(r, path, item.error().message);
  out = *item;
  return {};
}

template <class T>
Status get_number(FieldReader& r, const std::string& path, T& out) {
  std::uint64_t value = 0;
  if (Status status = take(r, r.cbor.unsigned_integer(), path, value); !status) return status;
  if (value > std::numeric_limits<T>::max()) {
    return error_at(r, path, fmt::format("must be at most {}", std::numeric_limits<T>::max()));
  }
  out = static_cast<T>(value);
  return {};
}

Status get(FieldReader& r, const std::string& path, std::uint32_t& out);
Status get(FieldReader& r, const std::string& path, std::uint64_t& out);
Status get(FieldReader& r, const std::string& path, std::int32_t& out);
Status get(FieldReader& r, const std::string& path, float& out);
Status get(FieldReader& r, const std::string& path, bool& out);
Status get(FieldReader& r, const std::string& path, const RecordName& name);
Status get(FieldReader& r, const std::string& path, std::string& out);
Status get(FieldReader& r, const std::string& path, Bytes& out);
Status get(FieldReader& r, const std::string& path, Digest& out);
Status get(FieldReader& r, const std::string& path, TokenIds& out);
Status get(FieldReader& r, const std::string& path, core::BlockRecord& out);

template <class T>
requires std::is_enum_v<T> Status get(FieldReader& r, const std::string& path, T& out) {
  std::underlying_type_t<T> value{};
  if (Status status = get_number(r, path, value); !status) return status;
  out = static_cast<T>(value);
  return {};
}

template <HasFields T>
Status get(FieldReader& r, const std::string& path, T& out);

template <class T>
Status get(FieldReader& r, const std::string& path, std::vector<T>& out) {
  std::size_t count = 0;
  if (Status status = take(r, r.cbor.array(), path, count); !status) return status;
  for (std::size_t i = 0; i < count; ++i) {
    T item{};
    if (Status status = get(r, fmt::format("{}[{}]", path, i), item); !status) return status;
    out.push_back(std::move(item));
  }
  return {};
}

/// Exactly the known keys, in the order in which the deterministic encoding puts them.
template <HasFields T>
Status get(FieldReader& r, const std::string& path, T& out) {
  struct Entry {
    Bytes key;
    std::string name;
    std::function<Status(const std::string&)> read;
  };
  std::vector<Entry> entries;
  for_each_field(out, [&](const char* name, auto& member) {
    entries.push_back({encoded(std::string(name)), name,
                       [&r, &member](const std::string& where) { return get(r, where, member); }});
  });
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.key < b.key; });

  std::size_t count = 0;
  if (Status status = take(r, r.cbor.map(), path, count); !status) return status;
  for (std::size_t i = 0; i < count; ++i) {
    std::string key;
    if (Status status = get(r, path, key); !status) return status;
    if (i >= entries.size() || key != entries[i].name) {
      const std::string expected = i < entries.size() ? "field " + entries[i].name : "no more fields";
      return error_at(r, path, fmt::format("expected {}, found field {}", expected, key));
    }
    if (Status status = entries[i].read(path_of(path, key)); !status) return status;
  }
  if (count != entries.size()) return error_at(r, path_of(path, entries[count].name), "is missing");
  return {};
}

/// Reads a whole value and nothing after it, which must be what `encode` writes for it.
template <HasFields T, class Encode>
Result<T> decode_strictly(std::span<const std::uint8_t> bytes, std::string_view what, const Encode& encode) {
  T value;
  FieldReader reader{CborReader(bytes), what};
  if (Status status = get(reader, "", value); !status) return status.error();
  if (!reader.cbor.at_end()) return caller_error(fmt::format("the {} is followed by further bytes", what));
  Result<Bytes> again = encode(value);
  if (!again) return again.error();
  if (!std::equal(again->begin(), again->end(), bytes.begin(), bytes.end())) {
    const auto differs = std::mismatch(again->begin(), again->end(), bytes.begin(), bytes.end());
    return caller_error(fmt::format("the {} is not in deterministic CBOR: byte {} could be written shorter",
                                    what, differs.second - bytes.begin()));
  }
  return value;
}

/// Reads on to a key of the map that follows; false where there is none.
bool find_key(CborReader& r, std::string_view key);

}  // namespace fieldprint::commit::detail
