#include "cbor/cbor.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>

#include "base/sha256.h"

namespace fieldprint::cbor {
namespace {

template <class Write>
std::string hex(const Write& write) {
  CborWriter writer;
  write(writer);
  return to_hex(writer.bytes());
}

std::vector<std::uint8_t> bytes(std::string_view text) {
  std::vector<std::uint8_t> out(text.size() / 2);
  EXPECT_TRUE(from_hex(text, out));
  return out;
}

// RFC 8949, appendix A.
TEST(Cbor, WritesTheExamplesOfTheStandard) {
  const std::pair<std::uint64_t, std::string_view> numbers[] = {
      {0, "00"},
      {23, "17"},
      {24, "1818"},
      {100, "1864"},
      {1000, "1903e8"},
      {1000000, "1a000f4240"},
      {1000000000000, "1b000000e8d4a51000"},
      {18446744073709551615u, "1bffffffffffffffff"}};
  for (const auto& [value, expected] : numbers) {
    EXPECT_EQ(hex([number = value](CborWriter& w) { w.unsigned_integer(number); }), expected);
  }
  EXPECT_EQ(hex([](CborWriter& w) { w.integer(-1); }), "20");
  EXPECT_EQ(hex([](CborWriter& w) { w.integer(-1000); }), "3903e7");
  EXPECT_EQ(hex([](CborWriter& w) { w.text("IETF"); }), "6449455446");
  EXPECT_EQ(hex([](CborWriter& w) { w.byte_string(bytes("01020304")); }), "4401020304");
  EXPECT_EQ(hex([](CborWriter& w) { w.array(3); }), "83");
  EXPECT_EQ(hex([](CborWriter& w) { w.map(2); }), "a2");
}

TEST(Cbor, WritesFloatsInTheShortestFormThatKeepsThem) {
  const std::pair<float, std::string_view> floats[] = {
      {0.0f, "f90000"},         {-0.0f, "f98000"},
      {1.0f, "f93c00"},         {1.5f, "f93e00"},
      {65504.0f, "f97bff"},     {100000.0f, "fa47c35000"},
      {0x1p-24f, "f90001"},     {0x1p-14f, "f90400"},
      {0x1p-25f, "fa33000000"}, {-4.0f, "f9c400"},
      {0.8f, "fa3f4ccccd"},     {0x1.8p-24f, "fa33c00000"},
      {65536.0f, "fa47800000"}, {3.4028234663852886e+38f, "fa7f7fffff"},
      {0x1p-149f, "fa00000001"}};
  for (const auto& [value, expected] : floats) {
    EXPECT_EQ(hex([number = value](CborWriter& w) { w.single(number); }), expected) << value;
  }
}

TEST(Cbor, EveryFiniteHalfRoundTripsInThreeBytes) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    if ((bits & 0x7c00) == 0x7c00) continue;
    const std::vector<std::uint8_t> encoded = {0xf9, static_cast<std::uint8_t>(bits >> 8),
                                               static_cast<std::uint8_t>(bits)};
    auto value = CborReader(encoded).single();
    ASSERT_TRUE(value.ok());
    CborWriter writer;
    writer.single(*value);
    ASSERT_EQ(writer.bytes(), encoded) << bits;
  }
}

TEST(Cbor, FloatsKeepTheirBits) {
  std::uint32_t state = 1;
  for (int i = 0; i < 200000; ++i) {
    state = state * 1664525u + 1013904223u;
    const auto value = std::bit_cast<float>(state);
    if (!std::isfinite(value)) continue;
    CborWriter writer;
    writer.single(value);
    auto read = CborReader(writer.bytes()).single();
    ASSERT_TRUE(read.ok());
    ASSERT_EQ(std::bit_cast<std::uint32_t>(*read), state);
  }
}

TEST(Cbor, SaysWhatItExpectedAndWhatItFound) {
  EXPECT_EQ(CborReader(bytes("6161")).unsigned_integer().error().message,
            "expected an unsigned integer, found a text string");
  EXPECT_EQ(CborReader(bytes("20")).unsigned_integer().error().message,
            "expected an unsigned integer, found a negative integer");
  EXPECT_EQ(CborReader(bytes("")).map().error().message, "expected a map, but the bytes end");
  EXPECT_EQ(CborReader(bytes("19ff")).unsigned_integer().error().message,
            "expected an unsigned integer, but the bytes end");
  EXPECT_EQ(CborReader(bytes("1c")).array().error().message,
            "expected an array, found bytes that are no CBOR item");
  EXPECT_EQ(CborReader(bytes("9fff")).array().error().message,
            "expected an array, found an item of indefinite length");
  EXPECT_EQ(CborReader(bytes("fb3ff0000000000000")).single().error().message,
            "expected a float, found a double");
  EXPECT_EQ(CborReader(bytes("f6")).text().error().message, "expected a text string, found null");
  EXPECT_EQ(CborReader(bytes("61ff")).text().error().message,
            "expected a text string, found one that is not UTF-8");
}

TEST(Cbor, ALengthThatLiesIsRefusedWithoutAllocation) {
  EXPECT_FALSE(CborReader(bytes("9b0fffffffffffffff00")).array().ok());
  EXPECT_FALSE(CborReader(bytes("bb0fffffffffffffff00")).map().ok());
  EXPECT_FALSE(CborReader(bytes("5b7fffffffffffffff00")).byte_string().ok());
  EXPECT_FALSE(CborReader(bytes("5bffffffffffffffff00")).byte_string().ok());
  EXPECT_FALSE(CborReader(bytes("1bffffffffffffffff")).integer().ok());
}

TEST(Cbor, SkipsAnItemWithAllThatIsInIt) {
  // [1, {"a": [h'00ff', 1.5]}, -3], then 7
  const auto nested = bytes(
      "8301a161618242"
      "00fff93e00"
      "2207");
  CborReader reader(nested);
  ASSERT_TRUE(reader.skip().ok());
  EXPECT_EQ(*reader.unsigned_integer(), 7u);
  EXPECT_FALSE(reader.skip().ok());
  EXPECT_FALSE(CborReader(bytes("8201")).skip().ok());
  EXPECT_FALSE(CborReader(bytes("9bffffffffffffffff01")).skip().ok());
  EXPECT_FALSE(CborReader(bytes("9f01ff")).skip().ok());
  // Deeper than any stack.
  EXPECT_FALSE(CborReader(std::vector<std::uint8_t>(1 << 20, 0x81)).skip().ok());
}

TEST(Cbor, FindsATextUnderAKey) {
  const auto map = bytes(
      "a2"
      "6161"
      "82a001"
      "667265636f7264"
      "646f70656e");  // {"a": [{}, 1], "record": "open"}
  EXPECT_EQ(text_under("record", map), "open");
  EXPECT_EQ(text_under("a", map), "");
  EXPECT_EQ(text_under("b", map), "");
  EXPECT_EQ(text_under("record", std::span(map).first(map.size() - 1)), "");
  EXPECT_EQ(text_under("record", bytes("82667265636f7264646f70656e")), "");
  EXPECT_EQ(text_under("record", bytes("")), "");
}

}  // namespace
}  // namespace fieldprint::cbor
