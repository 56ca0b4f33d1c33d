#include "weights/gguf.h"

#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "base/bounds.h"

namespace fieldprint::weights {
namespace {

// Value types, in the specification's numbers.
enum : std::uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};
constexpr std::array<std::string_view, 13> kTypeNames = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                                         "int32",  "float32", "bool",   "string", "array",
                                                         "uint64", "int64",   "float64"};
constexpr std::array<std::size_t, 13> kTypeBytes = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
constexpr int kMaxNesting = 4;
constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint64_t kMaxAlignment = 1 << 20;

std::uint64_t load(std::span<const std::uint8_t> bytes) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) value |= static_cast<std::uint64_t>(bytes[i]) << (8 * i);
  return value;
}

std::string_view text_of(std::span<const std::uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// An integer of any type; nothing for a uint64 beyond int64 or another type.
std::optional<std::int64_t> integer_of(std::uint32_t type, std::span<const std::uint8_t> bytes) {
  if (bytes.size() > 8) return std::nullopt;  // a string
  const std::uint64_t raw = load(bytes);
  switch (type) {
    case kU8:
    case kU16:
    case kU32:
      return static_cast<std::int64_t>(raw);
    case kI8:
      return static_cast<std::int8_t>(raw);
    case kI16:
      return static_cast<std::int16_t>(raw);
    case kI32:
      return static_cast<std::int32_t>(raw);
    case kI64:
      return static_cast<std::int64_t>(raw);
    case kU64:
      if (raw <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        return static_cast<std::int64_t>(raw);
      }
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

Error wrong_type(std::string_view key, std::string_view wanted, std::uint32_t type, bool is_array) {
  return caller_error(fmt::format("metadata key {} is {}{}, not {}", printable(key),
                                  is_array ? "an array of " : "of type ", kTypeNames[type], wanted));
}

}  // namespace

std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 80)) out += c >= ' ' && c <= '~' ? c : '?';
  return out;
}

/// Reads the directory front to back; the first thing that does not fit is the error.
class GgufParser {
 public:
  explicit GgufParser(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  Result<Gguf> parse() {
    if (Status status = header(); !status) return status.error();
    for (std::uint64_t i = 0; i < key_count_; ++i) {
      if (Status status = key_value(); !status) return status.error();
    }
    if (Status status = read_alignment(); !status) return status.error();
    std::vector<Entry> entries;
    for (std::uint64_t i = 0; i < tensor_count_; ++i) {
      if (Status status = tensor_info(entries); !status) return status.error();
    }
    if (Status status = locate(entries); !status) return status.error();
    return std::move(gguf_);
  }

 private:
  struct Entry {
    GgufTensor tensor;
    std::uint64_t offset;
    std::uint64_t bytes;
  };

  Error damaged(std::string_view what) const {
    return caller_error(
        fmt::format("not a sound GGUF file: at byte {}: {}; fetch the file again", at_, what));
  }
  Error ends(std::string_view what) const {
    return damaged(fmt::format("the file ends ({} bytes) inside {}", bytes_.size(), what));
  }

  /// False at the end of the file.
  bool take(std::size_t count, std::span<const std::uint8_t>& out) {
    if (count > bytes_.size() - at_) return false;
    out = bytes_.subspan(at_, count);
    at_ += count;
    return true;
  }
  template <class T>
  bool number(T& out) {
    std::span<const std::uint8_t> raw;
    if (!take(sizeof(T), raw)) return false;
    out = static_cast<T>(load(raw));
    return true;
  }
  Status string(std::string_view what, std::string_view& out) {
    std::uint64_t size = 0;
    if (!number(size)) return ends(what);
    if (size > static_cast<std::uint64_t>(bounds::kMaxStringBytes)) {
      return damaged(fmt::format("{} claims {} bytes, more than {}", what, size, bounds::kMaxStringBytes));
    }
    std::span<const std::uint8_t> raw;
    if (!take(static_cast<std::size_t>(size), raw)) return ends(what);
    out = text_of(raw);
    return {};
  }

  Status header() {
    std::span<const std::uint8_t> magic;
    if (!take(4, magic) || text_of(magic) != "GGUF") {
      return caller_error("not a GGUF file: it does not begin with \"GGUF\"; give a .gguf model file");
    }
    std::uint32_t version = 0;
    if (!number(version)) return ends("the header");
    if (version != 0 && (version & 0xFFFFU) == 0) {
      return caller_error("a big-endian GGUF file; convert it to little endian");
    }
    if (version < 2 || version > 3) {
      return caller_error(
          fmt::format("GGUF version {} is not supported (2 and 3 are); convert the model again with a "
                      "current converter",
                      version));
    }
    if (!number(tensor_count_) || !number(key_count_)) return ends("the header");
    if (tensor_count_ > static_cast<std::uint64_t>(bounds::kMaxTensors)) {
      return damaged(fmt::format("{} tensors, more than {}", tensor_count_, bounds::kMaxTensors));
    }
    if (key_count_ > static_cast<std::uint64_t>(bounds::kMaxMetadataKeys)) {
      return damaged(fmt::format("{} metadata keys, more than {}", key_count_, bounds::kMaxMetadataKeys));
    }
    return {};
  }

  Status key_value() {
    std::string_view key;
    if (Status status = string("a metadata key", key); !status) return status;
    const std::string name = fmt::format("the value of metadata key {}", printable(key));
    Gguf::Value value;
    if (!number(value.type)) return ends(name);
    if (value.type == kArray) {
      value.is_array = true;
      if (Status status = array(name, 1, value); !status) return status;
    } else {
      const std::size_t begin = at_;
      if (Status status = skip(name, value.type, 1); !status) return status;
      value.bytes = bytes_.subspan(begin, at_ - begin);
    }
    if (!gguf_.values_.emplace(key, value).second) {
      return damaged(fmt::format("metadata key {} stands there twice", printable(key)));
    }
    return {};
  }

  Status array(std::string_view what, int depth, Gguf::Value& out) {
    std::uint64_t count = 0;
    if (!number(out.type) || !number(count)) return ends(what);
    if (depth > kMaxNesting) return damaged(fmt::format("{} nests arrays deeper than {}", what, kMaxNesting));
    if (count > static_cast<std::uint64_t>(bounds::kMaxArrayElements)) {
      return damaged(
          fmt::format("{} claims {} elements, more than {}", what, count, bounds::kMaxArrayElements));
    }
    const std::size_t begin = at_;
    if (out.type == kArray) {
      for (std::uint64_t i = 0; i < count; ++i) {
        Gguf::Value inner;
        if (Status status = array(what, depth + 1, inner); !status) return status;
      }
    } else if (Status status = skip(what, out.type, count); !status) {
      return status;
    }
    out.count = static_cast<std::int64_t>(count);
    out.bytes = bytes_.subspan(begin, at_ - begin);
    return {};
  }

  /// Passes over `count` values that are no arrays.
  Status skip(std::string_view what, std::uint32_t type, std::uint64_t count) {
    if (type >= kTypeBytes.size() || type == kArray) {
      return damaged(fmt::format("{} is of unknown type {}", what, type));
    }
    if (type != kString) {
      std::span<const std::uint8_t> raw;
      return take(static_cast<std::size_t>(count) * kTypeBytes[type], raw) ? Status() : ends(what);
    }
    std::string_view ignored;
    for (std::uint64_t i = 0; i < count; ++i) {
      if (Status status = string(what, ignored); !status) return status;
    }
    return {};
  }

  Status read_alignment() {
    if (!gguf_.has("general.alignment")) return {};
    const auto value = gguf_.integer("general.alignment");
    if (!value) return value.error();
    if (*value < 8 || static_cast<std::uint64_t>(*value) > kMaxAlignment || *value % 8 != 0) {
      return caller_error(
          fmt::format("general.alignment is {}; it must be a multiple of 8 up to {}", *value, kMaxAlignment));
    }
    alignment_ = static_cast<std::uint64_t>(*value);
    return {};
  }

  Status tensor_info(std::vector<Entry>& entries) {
    Entry entry{};
    if (Status status = string("a tensor's name", entry.tensor.name); !status) return status;
    const std::string what = fmt::format("the description of tensor {}", printable(entry.tensor.name));
    std::uint32_t dimensions = 0;
    if (!number(dimensions)) return ends(what);
    if (dimensions < 1 || dimensions > entry.tensor.extent.size()) {
      return damaged(fmt::format("{}: {} dimensions; 1 to 4 are possible", what, dimensions));
    }
    entry.tensor.dimensions = static_cast<int>(dimensions);
    for (std::uint32_t i = 0; i < dimensions; ++i) {
      if (!number(entry.tensor.extent[i])) return ends(what);
    }
    std::uint32_t type = 0;
    if (!number(type) || !number(entry.offset)) return ends(what);
    if (Status status = measure(what, type, entry); !status) return status;
    entries.push_back(entry);
    return {};
  }

  Status measure(std::string_view what, std::uint32_t type, Entry& entry) {
    const TensorTypeTraits* const traits = traits_of(type);
    if (traits == nullptr) {
      return caller_error(
          fmt::format("tensor {} has type {} ({}), which is not supported; convert the model to F32, F16, "
                      "BF16, Q8_0, Q4_0, Q4_1, "
                      "Q5_0, Q5_1, Q4_K, Q5_K or Q6_K",
                      printable(entry.tensor.name), type, ggml_type_name(type)));
    }
    entry.tensor.type = static_cast<TensorType>(type);
    std::uint64_t blocks = 1;
    for (std::size_t i = 0; i < entry.tensor.extent.size(); ++i) {
      const std::int64_t extent = entry.tensor.extent[i];
      if (extent < 1) return damaged(fmt::format("{}: dimension {} is {}", what, i, extent));
      if (i == 0 && extent % traits->columns != 0) {
        return damaged(fmt::format("{}: {} columns are no multiple of {}'s block of {}", what, extent,
                                   traits->name, traits->columns));
      }
      const auto factor = static_cast<std::uint64_t>(i == 0 ? extent / traits->columns : extent);
      // No tensor is larger than the file, so a product beyond it needs no exact value.
      if (factor > bytes_.size() / blocks) {
        return damaged(fmt::format("{}: it is larger than the file ({} bytes)", what, bytes_.size()));
      }
      blocks *= factor;
    }
    entry.bytes = blocks * static_cast<std::uint64_t>(traits->bytes);
    return {};
  }

  Status locate(const std::vector<Entry>& entries) {
    const std::uint64_t data = (at_ + alignment_ - 1) / alignment_ * alignment_;
    for (const Entry& entry : entries) {
      const std::string name = printable(entry.tensor.name);
      if (entry.offset % alignment_ != 0) {
        return damaged(
            fmt::format("tensor {}: offset {} is not aligned to {}", name, entry.offset, alignment_));
      }
      const std::uint64_t size = bytes_.size();
      if (data > size || entry.offset > size - data || entry.bytes > size - data - entry.offset) {
        return caller_error(
            fmt::format("the GGUF file is truncated: tensor {} needs {} bytes at byte {} + {}, and "
                        "the file ends at {}; fetch the file again",
                        name, entry.bytes, data, entry.offset, size));
      }
      GgufTensor tensor = entry.tensor;
      tensor.data = bytes_.subspan(static_cast<std::size_t>(data + entry.offset),
                                   static_cast<std::size_t>(entry.bytes));
      if (!gguf_.tensors_.emplace(tensor.name, tensor).second) {
        return damaged(fmt::format("tensor {} is described twice", name));
      }
    }
    return {};
  }

  std::span<const std::uint8_t> bytes_;
  std::size_t at_ = 0;
  std::uint64_t tensor_count_ = 0;
  std::uint64_t key_count_ = 0;
  std::uint64_t alignment_ = kDefaultAlignment;
  Gguf gguf_;
};

Result<Gguf> Gguf::parse(std::span<const std::uint8_t> bytes) { return GgufParser(bytes).parse(); }

const GgufTensor* Gguf::find_tensor(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

Result<const Gguf::Value*> Gguf::find(std::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end()) {
    return caller_error(fmt::format(
        "metadata key {} is missing; convert the model again with a current converter", printable(key)));
  }
  return &found->second;
}

Result<std::int64_t> Gguf::integer(std::string_view key) const {
  const auto value = find(key);
  if (!value) return value.error();
  if (!(*value)->is_array) {
    if (const auto number = integer_of((*value)->type, (*value)->bytes)) return *number;
  }
  return wrong_type(key, "an integer within int64", (*value)->type, (*value)->is_array);
}

Result<double> Gguf::real(std::string_view key) const {
  const auto value = find(key);
  if (!value) return value.error();
  const Value& found = **value;
  if (!found.is_array) {
    if (found.type == kF32) return std::bit_cast<float>(static_cast<std::uint32_t>(load(found.bytes)));
    if (found.type == kF64) return std::bit_cast<double>(load(found.bytes));
    if (const auto number = integer_of(found.type, found.bytes)) return static_cast<double>(*number);
  }
  return wrong_type(key, "a number", found.type, found.is_array);
}

Result<bool> Gguf::boolean(std::string_view key) const {
  const auto value = find(key);
  if (!value) return value.error();
  if ((*value)->is_array || (*value)->type != kBool) {
    return wrong_type(key, "a bool", (*value)->type, (*value)->is_array);
  }
  return load((*value)->bytes) != 0;
}

Result<std::string_view> Gguf::string(std::string_view key) const {
  const auto value = find(key);
  if (!value) return value.error();
  if ((*value)->is_array || (*value)->type != kString) {
    return wrong_type(key, "a string", (*value)->type, (*value)->is_array);
  }
  return text_of((*value)->bytes.subspan(8));
}

Result<std::vector<float>> Gguf::reals(std::string_view key) const {
  const auto value = find(key);
  if (!value) return value.error();
  const Value& found = **value;
  if (!found.is_array || found.type != kF32) {
    return wrong_type(key, "an array of float32", found.type, found.is_array);
  }
  std::vector<float> out;
  out.reserve(static_cast<std::size_t>(found.count));
  for (std::size_t i = 0; i < static_cast<std::size_t>(found.count); ++i) {
    out.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(load(found.bytes.subspan(4 * i, 4)))));
  }
  return out;
}

Result<std::vector<std::int64_t>> Gguf::integers(std::string_view key) const {
  const auto value = find(key);
  if (!value) return value.error();
  const Value& found = **value;
  std::vector<std::int64_t> out;
  if (found.is_array) {
    const std::size_t width = kTypeBytes[found.type];
    out.reserve(static_cast<std::size_t>(found.count));
    for (std::size_t i = 0; i < static_cast<std::size_t>(found.count); ++i) {
      const auto number =
          width == 0 ? std::nullopt : integer_of(found.type, found.bytes.subspan(width * i, width));
      if (!number) return wrong_type(key, "an array of integers within int64", found.type, true);
      out.push_back(*number);
    }
    return out;
  }
  return wrong_type(key, "an array of integers", found.type, false);
}

Status Gguf::strings(std::string_view key, const std::function<bool(std::string_view)>& visit) const {
  const auto value = find(key);
  if (!value) return value.error();
  const Value& found = **value;
  if (!found.is_array || found.type != kString) {
    return wrong_type(key, "an array of strings", found.type, found.is_array);
  }
  std::size_t at = 0;
  for (std::int64_t i = 0; i < found.count; ++i) {
    const auto size = static_cast<std::size_t>(load(found.bytes.subspan(at, 8)));
    if (!visit(text_of(found.bytes.subspan(at + 8, size)))) return {};
    at += 8 + size;
  }
  return {};
}

Result<std::int64_t> Gguf::length(std::string_view key) const {
  const auto value = find(key);
  if (!value) return value.error();
  if (!(*value)->is_array) return wrong_type(key, "an array", (*value)->type, false);
  return (*value)->count;
}

Result<GgufFile> GgufFile::open(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file) return file.error();
  auto gguf = Gguf::parse((*file)->bytes());
  if (!gguf) return Error{gguf.error().kind, fmt::format("{}: {}", path, gguf.error().message)};
  return GgufFile{std::move(*file), std::move(*gguf)};
}

}  // namespace fieldprint::weights
