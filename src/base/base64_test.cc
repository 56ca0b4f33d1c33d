#include "base/base64.h"

#include <gtest/gtest.h>

#include <string>

namespace fieldprint {
namespace {

std::vector<std::uint8_t> bytes_of(std::string_view text) { return {text.begin(), text.end()}; }

TEST(Base64, MatchesTheVectorsOfRfc4648) {
  const std::pair<std::string_view, std::string_view> vectors[] = {
      {"", ""},
      {"f", "Zg=="},
      {"fo", "Zm8="},
      {"foo", "Zm9v"},
      {"foob", "Zm9vYg=="},
      {"fooba", "Zm9vYmE="},
      {"foobar", "Zm9vYmFy"},
  };
  for (const auto& [plain, text] : vectors) {
    EXPECT_EQ(base64_encode(bytes_of(plain)), text);
    EXPECT_EQ(base64_decode(text), bytes_of(plain));
  }
}

TEST(Base64, RoundTripsEveryByteAtEveryOffset) {
  for (std::size_t lead = 0; lead < 3; ++lead) {
    std::vector<std::uint8_t> bytes(lead, 0xa5);
    for (int b = 0; b < 256; ++b) bytes.push_back(static_cast<std::uint8_t>(b));
    EXPECT_EQ(base64_decode(base64_encode(bytes)), bytes);
  }
}

TEST(Base64, RefusesEveryOtherSpelling) {
  for (const std::string_view text : {"Zg", "Zg=", "Zg==\n", "Zh==", "Zm9=", "Z===", "====", "=",
                                      "Zg==Zg==", "Zm-v", "Zm_v", " Zm9", "Zm9v ", "Z=9v"}) {
    EXPECT_FALSE(base64_decode(text)) << text;
  }
}

}  // namespace
}  // namespace fieldprint
