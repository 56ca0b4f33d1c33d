#include "commit/receipt.h"

#include <optional>

#include "base/bounds.h"
#include "commit/decoding.h"
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

Bytes digest_leaf(std::string_view record, std::span<const std::uint8_t> encoding) {
  CborWriter writer;
  writer.map(record.empty() ? 2 : 3);
  // Keys in the order of their encodings.
  if (!record.empty()) {
    writer.text("record");
    writer.text(record);
  }
  writer.text("body_bytes");
  writer.unsigned_integer(encoding.size());
  writer.text("body_digest");
  writer.byte_string(sha256(encoding));
  return writer.take();
}

}  // namespace detail

namespace {

std::optional<std::uint64_t> stated_version(std::span<const std::uint8_t> receipt) {
  CborReader reader(receipt);
  if (!detail::find_key(reader, "body") || !detail::find_key(reader, "version")) return std::nullopt;
  const auto version = reader.unsigned_integer();
  return version ? std::optional(*version) : std::nullopt;
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
  return detail::digest_leaf("", encoded_body);
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
  auto receipt =
      detail::decode_strictly<Receipt>(bytes, "receipt", [](const Receipt& r) { return encode(r); });
  if (receipt) return receipt;
  const auto version = stated_version(bytes);
  if (!version || *version == kReceiptVersion) return receipt;
  return caller_error(
      fmt::format("receipt field version: made by {} version of fieldprint, which writes receipts "
                  "of version {}; this program reads version {}",
                  *version < kReceiptVersion ? "an earlier" : "a later", *version, kReceiptVersion));
}

}  // namespace fieldprint::commit
