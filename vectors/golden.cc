#include "vectors/golden.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "exact/format.h"
#include "vectors/source.h"

namespace fieldprint::vectors {
namespace {

constexpr std::size_t kShown = 4;

}  // namespace

float value_of(RowKind kind, Source& source) {
  // Drawn first, whatever the kind: C++ leaves open which factor of a product is evaluated first.
  const std::uint64_t choice = source.below(64);
  switch (kind) {
    case RowKind::kOrdinary:
      return source.unit();
    case RowKind::kOutlier:
      return source.unit() * (choice == 0 ? 1000.0F : 0.01F);
    case RowKind::kTiny:
      return source.unit() * (choice % 2 == 0 ? 0x1p-99F : 0x1p-130F);
    case RowKind::kHuge:
      return source.unit() * exact::kMaxFloat;
    case RowKind::kZero:
      return choice % 2 == 0 ? 0.0F : -0.0F;
    case RowKind::kTies:
      return static_cast<float>(source.between(-254, 254)) * 0.5F;
    case RowKind::kInfinite:
      return choice % 32 == 0 ? std::numeric_limits<float>::infinity() : source.unit();
    case RowKind::kNan:
      return choice % 32 == 0 ? std::numeric_limits<float>::quiet_NaN() : source.unit();
  }
  return 0.0F;
}

std::vector<float> rows_of_kinds(std::int64_t rows, std::int64_t cols, int kinds, Source& source) {
  std::vector<float> x;
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto kind = static_cast<RowKind>(r % kinds);
    const std::size_t begin = x.size();
    for (std::int64_t c = 0; c < cols; ++c) x.push_back(value_of(kind, source));
    if (kind == RowKind::kTies) x[begin] = 127.0F;
  }
  return x;
}

std::vector<float> floats(std::int64_t count, float scale, Source& source) {
  std::vector<float> x;
  for (std::int64_t i = 0; i < count; ++i) x.push_back(source.unit() * scale);
  return x;
}

std::vector<std::uint8_t> bytes(std::size_t count, Source& source) {
  std::vector<std::uint8_t> out;
  for (std::size_t i = 0; i < count; ++i) out.push_back(static_cast<std::uint8_t>(source.next()));
  return out;
}

template <class T>
void Recorder::add_bits(std::string name, std::string_view type, std::span<const T> bits) {
  std::vector<std::uint8_t> data;
  data.reserve(bits.size() * sizeof(T));
  for (const T value : bits) {
    for (std::size_t byte = 0; byte < sizeof(T); ++byte) {
      data.push_back(static_cast<std::uint8_t>(static_cast<std::uint64_t>(value) >> (8 * byte)));
    }
  }
  std::vector<std::string> first;
  for (std::size_t i = 0; i < std::min(kShown, bits.size()); ++i) {
    first.push_back(fmt::format("{:0{}x}", static_cast<std::uint64_t>(bits[i]), 2 * sizeof(T)));
  }
  vectors_.push_back({std::move(name), inputs_, std::string(type), bits.size(), sha256(data), first});
}

void Recorder::add(std::string name, std::span<const float> values) {
  std::vector<std::uint32_t> bits;
  for (const float value : values) {
    bits.push_back(std::isnan(value) ? 0x7FC00000U : std::bit_cast<std::uint32_t>(value));
  }
  add_bits<std::uint32_t>(std::move(name), "f32", bits);
}

void Recorder::add(std::string name, std::span<const double> values) {
  std::vector<std::uint64_t> bits;
  for (const double value : values) bits.push_back(std::bit_cast<std::uint64_t>(value));
  add_bits<std::uint64_t>(std::move(name), "f64", bits);
}

void Recorder::add(std::string name, std::span<const std::int8_t> values) {
  std::vector<std::uint8_t> bits;
  for (const std::int8_t value : values) bits.push_back(static_cast<std::uint8_t>(value));
  add_bits<std::uint8_t>(std::move(name), "i8", bits);
}

void Recorder::add(std::string name, std::span<const std::uint8_t> values) {
  add_bits<std::uint8_t>(std::move(name), "u8", values);
}

void Recorder::add(std::string name, std::span<const std::int32_t> values) {
  std::vector<std::uint32_t> bits;
  for (const std::int32_t value : values) bits.push_back(static_cast<std::uint32_t>(value));
  add_bits<std::uint32_t>(std::move(name), "i32", bits);
}

void Recorder::add(std::string name, std::span<const std::uint16_t> values) {
  add_bits<std::uint16_t>(std::move(name), "u16", values);
}

void Recorder::add(std::string name, std::span<const std::uint64_t> values) {
  add_bits<std::uint64_t>(std::move(name), "u64", values);
}

std::vector<Vector> compute(backend::Backend& backend) {
  Recorder out;
  record_arithmetic(out);
  record_layers(backend, out);
  record_rope(backend, out);
  record_attention(backend, out);
  record_sampling(backend, out);
  record_pages(backend, out);
  return out.vectors();
}

std::string to_json(const std::vector<Vector>& vectors) {
  std::string out = fmt::format("{{\"canon\": \"{}\",\n\"vectors\": [\n", exact::kCanonVersion);
  for (std::size_t i = 0; i < vectors.size(); ++i) {
    const Vector& v = vectors[i];
    std::string first;
    for (const std::string& value : v.first) first += (first.empty() ? "\"" : ", \"") + value + "\"";
    out += fmt::format(
        "{{\"name\": \"{}\", \"inputs\": \"{}\", \"type\": \"{}\", \"count\": {}, \"sha256\": \"{}\", "
        "\"first\": [{}]}}{}\n",
        v.name, v.inputs, v.type, v.count, to_hex(v.sha256), first, i + 1 < vectors.size() ? "," : "");
  }
  return out + "]}\n";
}

}  // namespace fieldprint::vectors
