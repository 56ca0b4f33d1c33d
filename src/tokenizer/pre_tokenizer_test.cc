#include "tokenizer/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <charconv>

namespace fieldprint::tokenizer {
namespace {

TEST(UnicodeVersion, IsThatOfThePropertiesThatCutText) {
  const std::string version = unicode_version();
  int major = 0;
  const auto [end, error] = std::from_chars(version.data(), version.data() + version.size(), major);
  ASSERT_TRUE(error == std::errc() && *end == '.') << version;
  EXPECT_GE(major, 14);
  // U+16AD0, a letter since Unicode 7, and U+1DF00, one since 14: words of letters, and so one piece.
  std::vector<std::string> words;
  const auto pre = PreTokenizer::make("gpt-2").value();
  pre.split("a\U00016ad0\U0001df00", [&](std::string_view word) { words.emplace_back(word); });
  EXPECT_EQ(words.size(), 1U);
}

}  // namespace
}  // namespace fieldprint::tokenizer
