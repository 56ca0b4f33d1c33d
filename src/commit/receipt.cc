#include "commit/receipt.h"

#include <functional>
#include <limits>
#include <type_traits>

#include "base/bounds.h"
#include "commit/encoding.h"
#include "commit/validate.h"
#include "ledger/merkle.h"

namespace fieldprint::commit {
namespace detail {

void put(CborWriter& w, const TokenIds& tokens) {
  Bytes bytes;
  bytes.reserve(tokens.size() * 2);
  for (const std::int32_t id : tokens) {
    auto rest = static_cast<std::uint32_t>(id);
    for (; rest >= 0x80; rest >>= 7) bytes.push_back(static_cast<std::uint8_t>(rest | 0x80));
    bytes.push_back(static_cast<std::uint8_t>(rest));
  }
  w.byte_string(bytes);
}

void put(CborWriter& w, const core::BlockRecord& block) {
  w.array(4);
  w.unsigned_integer(static_cast<std::uint64_t>(block.segment));
  w.integer(block.index);
  w.integer(block.tokens);
  w.byte_string(block.digest);
}

}  // namespace detail

namespace {

using detail::for_each_field;
using detail::HasFields;
using detail::path_of;

Error at(const std::string& path, std::string_view problem) {
  return field_error({path.empty() ? "(receipt)" : path, std::string(problem)});
}

// Reads an item with `read`, and names the field if it is not what it should be.
template <class T>
Status take(Result<T> item, const std::string& path, T& out) {
  if (!item) return at(path, item.error().message);
  out = *item;
  return {};
}

template <class T>
Status get_number(CborReader& r, const std::string& path, T& out) {
  std::uint64_t value = 0;
  if (Status status = take(r.unsigned_integer(), path, value); !status) return status;
  if (value > std::numeric_limits<T>::max()) {
    return at(path, fmt::format("must be at most {}", std::numeric_limits<T>::max()));
  }
  out = static_cast<T>(value);
  return {};
}

Status get(CborReader& r, const std::string& path, std::uint32_t& out) { return get_number(r, path, out); }
Status get(CborReader& r, const std::string& path, std::uint64_t& out) { return get_number(r, path, out); }

Status get(CborReader& r, const std::string& path, std::int32_t& out) {
  std::int64_t value = 0;
  if (Status status = take(r.integer(), path, value); !status) return status;
  if (!std::in_range<std::int32_t>(value)) return at(path, "must be an integer of 32 bits");
  out = static_cast<std::int32_t>(value);
  return {};
}

Status get(CborReader& r, const std::string& path, float& out) { return take(r.single(), path, out); }

Status get(CborReader& r, const std::string& path, std::string& out) {
  std::string_view text;
  if (Status status = take(r.text(), path, text); !status) return status;
  out = text;
  return {};
}

Status get(CborReader& r, const std::string& path, Bytes& out) {
  std::span<const std::uint8_t> bytes;
  if (Status status = take(r.byte_string(), path, bytes); !status) return status;
  out.assign(bytes.begin(), bytes.end());
  return {};
}

Status get(CborReader& r, const std::string& path, Digest& out) {
  std::span<const std::uint8_t> bytes;
  if (Status status = take(r.byte_string(), path, bytes); !status) return status;
  if (bytes.size() != out.size()) return at(path, fmt::format("expected 32 bytes, found {}", bytes.size()));
  std::copy(bytes.begin(), bytes.end(), out.begin());
  return {};
}

template <class T>
requires std::is_enum_v<T> Status get(CborReader& r, const std::string& path, T& out) {
  std::underlying_type_t<T> value{};
  if (Status status = get_number(r, path, value); !status) return status;
  out = static_cast<T>(value);
  return {};
}

Status get(CborReader& r, const std::string& path, TokenIds& out) {
  std::span<const std::uint8_t> bytes;
  if (Status status = take(r.byte_string(), path, bytes); !status) return status;
  std::uint32_t value = 0;
  int shift = 0;
  for (const std::uint8_t byte : bytes) {
    if (shift > 21) return at(path, "a token id is longer than 4 bytes");
    value |= static_cast<std::uint32_t>(byte & 0x7f) << shift;
    shift += 7;
    if ((byte & 0x80) != 0) continue;
    out.push_back(static_cast<std::int32_t>(value));
    value = 0;
    shift = 0;
  }
  if (shift != 0) return at(path, "the last token id is cut off");
  return {};
}

Status get(CborReader& r, const std::string& path, core::BlockRecord& out) {
  std::size_t count = 0;
  if (Status status = take(r.array(), path, count); !status) return status;
  if (count != 4) return at(path, "expected [segment, index, tokens, digest]");
  if (Status status = get(r, path + ".segment", out.segment); !status) return status;
  if (Status status = get(r, path + ".index", out.index); !status) return status;
  if (Status status = get(r, path + ".tokens", out.tokens); !status) return status;
  return get(r, path + ".digest", out.digest);
}

template <HasFields T>
Status get(CborReader& r, const std::string& path, T& out);

template <class T>
Status get(CborReader& r, const std::string& path, std::vector<T>& out) {
  std::size_t count = 0;
  if (Status status = take(r.array(), path, count); !status) return status;
  for (std::size_t i = 0; i < count; ++i) {
    T item{};
    if (Status status = get(r, fmt::format("{}[{}]", path, i), item); !status) return status;
    out.push_back(std::move(item));
  }
  return {};
}

// Exactly the known keys, in the order in which the deterministic encoding puts them.
template <HasFields T>
Status get(CborReader& r, const std::string& path, T& out) {
  struct Entry {
    Bytes key;
    std::string name;
    std::function<Status(const std::string&)> read;
  };
  std::vector<Entry> entries;
  for_each_field(out, [&](const char* name, auto& member) {
    entries.push_back({detail::encoded(std::string(name)), name,
                       [&r, &member](const std::string& where) { return get(r, where, member); }});
  });
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.key < b.key; });

  std::size_t count = 0;
  if (Status status = take(r.map(), path, count); !status) return status;
  for (std::size_t i = 0; i < count; ++i) {
    std::string key;
    if (Status status = get(r, path, key); !status) return status;
    if (i >= entries.size() || key != entries[i].name) {
      const std::string expected = i < entries.size() ? "field " + entries[i].name : "no more fields";
      return at(path, fmt::format("expected {}, found field {}", expected, key));
    }
    if (Status status = entries[i].read(path_of(path, key)); !status) return status;
  }
  if (count != entries.size()) return at(path_of(path, entries[count].name), "is missing");
  return {};
}

}  // namespace

Digest digest_of(const TokenIds& tokens) {
  Bytes bytes;
  bytes.reserve(tokens.size() * 4);
  for (const std::int32_t id : tokens) {
    const auto value = static_cast<std::uint32_t>(id);
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<std::uint8_t>(value >> shift));
  }
  return sha256(bytes);
}

Result<Bytes> encode_body(const Body& body) {
  if (const auto invalid = find_invalid(body)) return field_error(*invalid);
  return detail::encoded(body);
}

Bytes leaf_of(Bytes encoded_body) {
  if (std::cmp_less_equal(encoded_body.size(), bounds::kMaxLeafBytes)) return encoded_body;
  CborWriter writer;
  writer.map(2);
  // Keys in the order of their encodings.
  writer.text("body_bytes");
  writer.unsigned_integer(encoded_body.size());
  writer.text("body_digest");
  writer.byte_string(sha256(encoded_body));
  return writer.take();
}

Result<Digest> commit_digest(const Body& body) {
  auto encoded = encode_body(body);
  if (!encoded) return encoded.error();
  return ledger::leaf_hash(leaf_of(std::move(*encoded)));
}

Result<Bytes> encode(const Receipt& receipt) {
  if (const auto malformed = find_malformed(receipt)) return field_error(*malformed);
  Bytes bytes = detail::encoded(receipt);
  if (std::cmp_greater(bytes.size(), bounds::kMaxReceiptBytes)) {
    return caller_error(
        fmt::format("a receipt of {} bytes is over the limit of {}", bytes.size(), bounds::kMaxReceiptBytes));
  }
  return bytes;
}

Result<Receipt> decode(std::span<const std::uint8_t> bytes) {
  if (std::cmp_greater(bytes.size(), bounds::kMaxReceiptBytes)) {
    return caller_error(
        fmt::format("a receipt of {} bytes is over the limit of {}", bytes.size(), bounds::kMaxReceiptBytes));
  }
  Receipt receipt;
  CborReader reader(bytes);
  if (Status status = get(reader, "", receipt); !status) return status.error();
  if (!reader.at_end()) return caller_error("the receipt is followed by further bytes");
  auto again = encode(receipt);
  if (!again) return again.error();
  if (!std::equal(again->begin(), again->end(), bytes.begin(), bytes.end())) {
    const auto differs = std::mismatch(again->begin(), again->end(), bytes.begin(), bytes.end());
    return caller_error(
        fmt::format("the receipt is not in deterministic CBOR: byte {} could be written shorter",
                    differs.second - bytes.begin()));
  }
  return receipt;
}

}  // namespace fieldprint::commit
