#include "base/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace fieldprint {
namespace {

TEST(Utf8, AcceptsTheFirstAndLastCodePointOfEachLength) {
  using namespace std::string_view_literals;
  for (const auto text :
       {""sv, "\0"sv, "\x7f"sv, "\xc2\x80"sv, "\xdf\xbf"sv, "\xe0\xa0\x80"sv, "\xed\x9f\xbf"sv,
        "\xee\x80\x80"sv, "\xef\xbf\xbf"sv, "\xf0\x90\x80\x80"sv, "\xf4\x8f\xbf\xbf"sv, "a\xc3\xa9z"sv}) {
    EXPECT_TRUE(valid_utf8(text)) << text;
  }
}

TEST(Utf8, RefusesOverlongSurrogateTruncatedAndStrayBytes) {
  using namespace std::string_view_literals;
  for (const auto text :
       {"\x80"sv, "\xbf"sv, "\xc0\x80"sv, "\xc1\xbf"sv, "\xc2"sv, "\xc2\x41"sv, "\xe0\x9f\xbf"sv,
        "\xed\xa0\x80"sv, "\xe2\x82"sv, "\xe2\x82\x41"sv, "\xf0\x8f\xbf\xbf"sv, "\xf4\x90\x80\x80"sv,
        "\xf5\x80\x80\x80"sv, "\xf0\x90\x80"sv, "\xff"sv, "ok\xfe"sv}) {
    EXPECT_FALSE(valid_utf8(text));
  }
}

TEST(Utf8, TheFirstCharacterEndsWhereTheNextBegins) {
  EXPECT_EQ(utf8_character(""), 0U);
  EXPECT_EQ(utf8_character("az"), 1U);
  EXPECT_EQ(utf8_character("\xc3\xa9z"), 2U);
  EXPECT_EQ(utf8_character("\xe2\x82\xacz"), 3U);
  EXPECT_EQ(utf8_character("\xf0\x9f\x98\x80z"), 4U);
  EXPECT_EQ(utf8_character("\xa9z"), 0U);
  EXPECT_EQ(utf8_character("\xe2\x82"), 0U);
}

TEST(Utf8, APrefixEndsWithAWholeCharacterAndHoldsNothingElse) {
  EXPECT_EQ(utf8_prefix("", 4), "");
  EXPECT_EQ(utf8_prefix("abc", 3), "abc");
  EXPECT_EQ(utf8_prefix("abc", 2), "ab");
  EXPECT_EQ(utf8_prefix("a\xc3\xa9", 2), "a");
  EXPECT_EQ(utf8_prefix("a\xc3\xa9", 3), "a\xc3\xa9");
  EXPECT_EQ(utf8_prefix("\xff\xc3", 6), "\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(utf8_prefix("\xff", 2), "");
}

}  // namespace
}  // namespace fieldprint
