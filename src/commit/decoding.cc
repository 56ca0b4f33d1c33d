#include "commit/decoding.h"

namespace fieldprint::commit::detail {

Error error_at(const FieldReader& r, const std::string& path, std::string_view problem) {
  const std::string field = path.empty() ? fmt::format("({})", r.what) : path;
  return caller_error(fmt::format("{} field {}: {}", r.what, field, problem));
}

Status get(FieldReader& r, const std::string& path, std::uint32_t& out) { return get_number(r, path, out); }
Status get(FieldReader& r, const std::string& path, std::uint64_t& out) { return get_number(r, path, out); }

Status get(FieldReader& r, const std::string& path, std::int32_t& out) {
  std::int64_t value = 0;
  if (Status status = take(r, r.cbor.integer(), path, value); !status) return status;
  if (!std::in_range<std::int32_t>(value)) return error_at(r, path, "must be an integer of 32 bits");
  out = static_cast<std::int32_t>(value);
  return {};
}

Status get(FieldReader& r, const std::string& path, float& out) {
  return take(r, r.cbor.single(), path, out);
}

Status get(FieldReader& r, const std::string& path, bool& out) {
  std::uint64_t value = 0;
  if (Status status = take(r, r.cbor.unsigned_integer(), path, value); !status) return status;
  if (value > 1) return error_at(r, path, "must be 0 (no) or 1 (yes)");
  out = value == 1;
  return {};
}

Status get(FieldReader& r, const std::string& path, const RecordName& name) {
  std::string_view text;
  if (Status status = take(r, r.cbor.text(), path, text); !status) return status;
  if (text != name.text)
    return error_at(r, path, fmt::format("expected \"{}\", found \"{}\"", name.text, text));
  return {};
}

Status get(FieldReader& r, const std::string& path, std::string& out) {
  std::string_view text;
  if (Status status = take(r, r.cbor.text(), path, text); !status) return status;
  out = text;
  return {};
}

Status get(FieldReader& r, const std::string& path, Bytes& out) {
  std::span<const std::uint8_t> bytes;
  if (Status status = take(r, r.cbor.byte_string(), path, bytes); !status) return status;
  out.assign(bytes.begin(), bytes.end());
  return {};
}

Status get(FieldReader& r, const std::string& path, Digest& out) {
  std::span<const std::uint8_t> bytes;
  if (Status status = take(r, r.cbor.byte_string(), path, bytes); !status) return status;
  if (bytes.size() != out.size()) {
    return error_at(r, path, fmt::format("expected 32 bytes, found {}", bytes.size()));
  }
  std::copy(bytes.begin(), bytes.end(), out.begin());
  return {};
}

Status get(FieldReader& r, const std::string& path, TokenIds& out) {
  std::span<const std::uint8_t> bytes;
  if (Status status = take(r, r.cbor.byte_string(), path, bytes); !status) return status;
  std::uint32_t value = 0;
  int shift = 0;
  for (const std::uint8_t byte : bytes) {
    if (shift > 21) return error_at(r, path, "a token id is longer than 4 bytes");
    value |= static_cast<std::uint32_t>(byte & 0x7f) << shift;
    shift += 7;
    if ((byte & 0x80) != 0) continue;
    out.push_back(static_cast<std::int32_t>(value));
    value = 0;
    shift = 0;
  }
  if (shift != 0) return error_at(r, path, "the last token id is cut off");
  return {};
}

Status get(FieldReader& r, const std::string& path, core::BlockRecord& out) {
  std::size_t count = 0;
  if (Status status = take(r, r.cbor.array(), path, count); !status) return status;
  if (count != 4) return error_at(r, path, "expected [segment, index, tokens, digest]");
  if (Status status = get(r, path + ".segment", out.segment); !status) return status;
  if (Status status = get(r, path + ".index", out.index); !status) return status;
  if (Status status = get(r, path + ".tokens", out.tokens); !status) return status;
  return get(r, path + ".digest", out.digest);
}

bool find_key(CborReader& r, std::string_view key) {
  const auto count = r.map();
  if (!count) return false;
  for (std::size_t i = 0; i < *count; ++i) {
    const auto found = r.text();
    if (!found) return false;
    if (*found == key) return true;
    if (!r.skip()) return false;
  }
  return false;
}

}  // namespace fieldprint::commit::detail
