#include "cbor/cbor.h"

#include <cbor.h>

#include <bit>
#include <cmath>
#include <variant>

#include "base/utf8.h"

namespace fieldprint::cbor {
namespace {

enum class ItemType {
  kNone,
  kUnsigned,
  kNegative,
  kBytes,
  kText,
  kArray,
  kMap,
  kFloat,
  kOther,
};

struct Item {
  ItemType type = ItemType::kNone;
  std::uint64_t number = 0;  // value, −1 − value of a negative integer, or count
  float value = 0;
  std::span<const std::uint8_t> bytes;
  std::string_view name = "nothing";
};

Item& item_of(void* context) { return *static_cast<Item*>(context); }

void set_number(void* context, ItemType type, std::uint64_t number, std::string_view name) {
  Item& item = item_of(context);
  item.type = type;
  item.number = number;
  item.name = name;
}

template <class T>
void on_unsigned(void* context, T value) {
  set_number(context, ItemType::kUnsigned, value, "an unsigned integer");
}
template <class T>
void on_negative(void* context, T value) {
  set_number(context, ItemType::kNegative, value, "a negative integer");
}
void on_array(void* context, std::size_t count) { set_number(context, ItemType::kArray, count, "an array"); }
void on_map(void* context, std::size_t count) { set_number(context, ItemType::kMap, count, "a map"); }
void on_bytes(void* context, cbor_data data, std::size_t size) {
  set_number(context, ItemType::kBytes, size, "a byte string");
  item_of(context).bytes = {data, size};
}
void on_text(void* context, cbor_data data, std::size_t size) {
  set_number(context, ItemType::kText, size, "a text string");
  item_of(context).bytes = {data, size};
}
void on_float(void* context, float value) {
  set_number(context, ItemType::kFloat, 0, "a float");
  item_of(context).value = value;
}
void on_double(void* context, double) { set_number(context, ItemType::kOther, 0, "a double"); }
void on_boolean(void* context, bool) { set_number(context, ItemType::kOther, 0, "a boolean"); }
void on_null(void* context) { set_number(context, ItemType::kOther, 0, "null"); }
void on_undefined(void* context) { set_number(context, ItemType::kOther, 0, "undefined"); }
void on_indefinite(void* context) {
  set_number(context, ItemType::kOther, 0, "an item of indefinite length");
}
void on_break(void* context) { set_number(context, ItemType::kOther, 0, "a break"); }
void on_tag(void* context, std::uint64_t) { set_number(context, ItemType::kOther, 0, "a tag"); }

constexpr cbor_callbacks make_callbacks() {
  cbor_callbacks callbacks{};
  callbacks.uint8 = on_unsigned<std::uint8_t>;
  callbacks.uint16 = on_unsigned<std::uint16_t>;
  callbacks.uint32 = on_unsigned<std::uint32_t>;
  callbacks.uint64 = on_unsigned<std::uint64_t>;
  callbacks.negint8 = on_negative<std::uint8_t>;
  callbacks.negint16 = on_negative<std::uint16_t>;
  callbacks.negint32 = on_negative<std::uint32_t>;
  callbacks.negint64 = on_negative<std::uint64_t>;
  callbacks.byte_string = on_bytes;
  callbacks.byte_string_start = on_indefinite;
  callbacks.string = on_text;
  callbacks.string_start = on_indefinite;
  callbacks.array_start = on_array;
  callbacks.indef_array_start = on_indefinite;
  callbacks.map_start = on_map;
  callbacks.indef_map_start = on_indefinite;
  callbacks.tag = on_tag;
  callbacks.float2 = on_float;
  callbacks.float4 = on_float;
  callbacks.float8 = on_double;
  callbacks.undefined = on_undefined;
  callbacks.null = on_null;
  callbacks.boolean = on_boolean;
  callbacks.indef_break = on_break;
  return callbacks;
}

constexpr cbor_callbacks kCallbacks = make_callbacks();

Result<Item> any_item(std::span<const std::uint8_t>& rest, std::string_view wanted_name) {
  Item item;
  const cbor_decoder_result result = cbor_stream_decode(rest.data(), rest.size(), &kCallbacks, &item);
  if (rest.empty() || result.status == CBOR_DECODER_NEDATA) {
    return caller_error(fmt::format("expected {}, but the bytes end", wanted_name));
  }
  if (result.status != CBOR_DECODER_FINISHED) {
    return caller_error(fmt::format("expected {}, found bytes that are no CBOR item", wanted_name));
  }
  rest = rest.subspan(result.read);
  return item;
}

Result<Item> next_item(std::span<const std::uint8_t>& rest, ItemType wanted, std::string_view wanted_name) {
  auto after = rest;
  auto item = any_item(after, wanted_name);
  if (!item) return item;
  const bool matches =
      item->type == wanted || (wanted == ItemType::kNegative && item->type == ItemType::kUnsigned);
  if (!matches) return caller_error(fmt::format("expected {}, found {}", wanted_name, item->name));
  rest = after;
  return item;
}

// The bits of the binary16 number with the value of `value`, if there is one (IEEE 754-2019 §3.4).
std::optional<std::uint16_t> exact_half(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint32_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude == 0) return static_cast<std::uint16_t>(sign);
  const int exponent = static_cast<int>(magnitude >> 23) - 127;
  const std::uint32_t fraction = magnitude & 0x7fffffu;
  if (exponent >= -14 && exponent <= 15) {
    if ((fraction & 0x1fffu) != 0) return std::nullopt;
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(exponent + 15) << 10 |
                                      fraction >> 13);
  }
  if (exponent >= -24 && exponent < -14) {
    const std::uint32_t significand = fraction | 0x800000u;
    const int shift = -1 - exponent;  // to units of 2^-24: 13 … 23 and the implied bit
    if ((significand & ((1u << shift) - 1)) != 0) return std::nullopt;
    return static_cast<std::uint16_t>(sign | significand >> shift);
  }
  return std::nullopt;
}

}  // namespace

template <class Encode>
void CborWriter::emit(const Encode& encode) {
  constexpr std::size_t kLongestHead = 9;
  const std::size_t before = bytes_.size();
  bytes_.resize(before + kLongestHead);
  const std::size_t written = encode(bytes_.data() + before, kLongestHead);
  CHECK(written > 0);
  bytes_.resize(before + written);
}

void CborWriter::unsigned_integer(std::uint64_t value) {
  emit([value](unsigned char* out, std::size_t size) { return cbor_encode_uint(value, out, size); });
}

void CborWriter::integer(std::int64_t value) {
  if (value >= 0) return unsigned_integer(static_cast<std::uint64_t>(value));
  const auto argument = static_cast<std::uint64_t>(-1 - value);
  emit([argument](unsigned char* out, std::size_t size) { return cbor_encode_negint(argument, out, size); });
}

void CborWriter::single(float value) {
  CHECK(std::isfinite(value));
  if (const auto half = exact_half(value)) {
    // libcbor rounds some subnormal binary16 numbers on the way through float, so the two bytes are set here.
    constexpr std::uint8_t kHalfPrecision = 0xf9;
    bytes_.push_back(kHalfPrecision);
    bytes_.push_back(static_cast<std::uint8_t>(*half >> 8));
    bytes_.push_back(static_cast<std::uint8_t>(*half & 0xff));
    return;
  }
  emit([value](unsigned char* out, std::size_t size) { return cbor_encode_single(value, out, size); });
}

void CborWriter::byte_string(std::span<const std::uint8_t> bytes) {
  emit([&](unsigned char* out, std::size_t size) {
    return cbor_encode_bytestring_start(bytes.size(), out, size);
  });
  append(bytes);
}

void CborWriter::text(std::string_view text) {
  emit(
      [&](unsigned char* out, std::size_t size) { return cbor_encode_string_start(text.size(), out, size); });
  bytes_.insert(bytes_.end(), text.begin(), text.end());
}

void CborWriter::array(std::size_t count) {
  emit([count](unsigned char* out, std::size_t size) { return cbor_encode_array_start(count, out, size); });
}

void CborWriter::map(std::size_t count) {
  emit([count](unsigned char* out, std::size_t size) { return cbor_encode_map_start(count, out, size); });
}

void CborWriter::append(std::span<const std::uint8_t> encoded) {
  bytes_.insert(bytes_.end(), encoded.begin(), encoded.end());
}

Result<std::uint64_t> CborReader::unsigned_integer() {
  auto item = next_item(rest_, ItemType::kUnsigned, "an unsigned integer");
  if (!item) return item.error();
  return item->number;
}

Result<std::int64_t> CborReader::integer() {
  auto item = next_item(rest_, ItemType::kNegative, "an integer");
  if (!item) return item.error();
  if (item->number > static_cast<std::uint64_t>(INT64_MAX))
    return caller_error("expected an integer of 64 bits");
  const auto magnitude = static_cast<std::int64_t>(item->number);
  return item->type == ItemType::kNegative ? -1 - magnitude : magnitude;
}

Result<float> CborReader::single() {
  auto item = next_item(rest_, ItemType::kFloat, "a float");
  if (!item) return item.error();
  return item->value;
}

Result<std::span<const std::uint8_t>> CborReader::byte_string() {
  auto item = next_item(rest_, ItemType::kBytes, "a byte string");
  if (!item) return item.error();
  return item->bytes;
}

Result<std::string_view> CborReader::text() {
  auto item = next_item(rest_, ItemType::kText, "a text string");
  if (!item) return item.error();
  const std::string_view text(reinterpret_cast<const char*>(item->bytes.data()), item->bytes.size());
  if (!valid_utf8(text)) return caller_error("expected a text string, found one that is not UTF-8");
  return text;
}

Result<std::size_t> CborReader::array() {
  auto item = next_item(rest_, ItemType::kArray, "an array");
  if (!item) return item.error();
  if (item->number > rest_.size()) return caller_error("an array is longer than the bytes that are left");
  return static_cast<std::size_t>(item->number);
}

Result<std::size_t> CborReader::map() {
  auto item = next_item(rest_, ItemType::kMap, "a map");
  if (!item) return item.error();
  if (item->number > rest_.size()) return caller_error("a map is longer than the bytes that are left");
  return static_cast<std::size_t>(item->number);
}

Status CborReader::skip() {
  for (std::uint64_t pending = 1; pending > 0; --pending) {
    auto item = any_item(rest_, "an item");
    if (!item) return item.error();
    if (item->type == ItemType::kOther) {
      return caller_error(fmt::format("expected an item, found {}", item->name));
    }
    const bool holds_items = item->type == ItemType::kArray || item->type == ItemType::kMap;
    if (!holds_items) continue;
    if (item->number > rest_.size()) return caller_error("a list is longer than the bytes that are left");
    pending += item->number * (item->type == ItemType::kMap ? 2 : 1);
  }
  return {};
}

std::string_view text_under(std::string_view key, std::span<const std::uint8_t> map) {
  CborReader reader(map);
  auto entries = reader.map();
  if (!entries) return {};
  for (std::size_t i = 0; i < *entries; ++i) {
    auto name = reader.text();
    if (!name) return {};
    if (*name == key) {
      auto value = reader.text();
      return value ? *value : std::string_view();
    }
    if (!reader.skip()) return {};
  }
  return {};
}

}  // namespace fieldprint::cbor
