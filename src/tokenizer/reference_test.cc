#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

#include "base/sha256.h"
#include "tokenizer/gguf_test_reader.h"

namespace fieldprint::tokenizer {
namespace {

std::string from_hex_text(const std::string& hex) {
  std::vector<std::uint8_t> bytes(hex.size() / 2);
  EXPECT_TRUE(from_hex(hex, bytes)) << hex;
  return {bytes.begin(), bytes.end()};
}

std::vector<std::int32_t> ids_of(const std::string& line) {
  std::istringstream in(line);
  std::vector<std::int32_t> ids;
  for (std::int32_t id; in >> id;) ids.push_back(id);
  return ids;
}

/// What decode must give back: the documented exceptions applied to the text.
std::string expected_back(const Tokenizer& tokenizer, const std::string& text) {
  std::string out;
  if (tokenizer.vocabulary().kind == Kind::kSentencePiece) {
    for (std::size_t i = 0; i < text.size();) {
      const bool space = text.compare(i, 3, "\xe2\x96\x81") == 0;
      out.push_back(space ? ' ' : text[i]);
      i += space ? 3 : 1;
    }
    return out;
  }
  const std::string absent =
      "\x04\x06\x13\x14\x16\x1d\xc0\xc1\xf1\xf2\xf5\xf6\xf7\xf8\xf9\xfa\xfb\xfc\xfd\xfe\xff";
  for (const char c : text) {
    if (absent.find(c) == std::string::npos) out.push_back(c);
  }
  return out;
}

class Reference : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(Reference, GivesTheIdsOfOtherLibrariesAndReadsBack) {
  const auto [name, variable] = GetParam();
  const char* path = std::getenv("FIELDPRINT_TOKEN_REFERENCE");
  if (path == nullptr || *path == '\0') {
    GTEST_SKIP() << "FIELDPRINT_TOKEN_REFERENCE is not set; see tools/reference_tokens.py";
  }
  const auto tokenizer = testing::from_environment(variable);
  if (!tokenizer) GTEST_SKIP() << variable << " is not set";

  std::ifstream in(path);
  ASSERT_TRUE(in) << path;
  std::string line;
  while (std::getline(in, line) && line != std::string("model ") + name) {
  }
  int compared = 0;
  int read_back = 0;
  int different = 0;
  while (std::getline(in, line) && !line.starts_with("model ")) {
    const std::size_t tab = line.find('\t');
    ASSERT_NE(tab, std::string::npos) << line;
    const std::string text = from_hex_text(line.substr(0, tab));
    const std::string wanted = line.substr(tab + 1);
    const auto ids = tokenizer->encode(text);
    EXPECT_EQ(tokenizer->decode(ids), expected_back(*tokenizer, text)) << line.substr(0, tab);
    ++read_back;
    if (wanted == "-") continue;
    ++compared;
    if (ids != ids_of(wanted) && ++different <= 20) {
      ADD_FAILURE() << line.substr(0, tab) << "\n wanted " << wanted << "\n got    "
                    << ::testing::PrintToString(ids);
    }
  }
  EXPECT_EQ(different, 0);
  EXPECT_GE(compared, 10'000);
  EXPECT_GE(read_back, compared + 1'000) << "the reference has few strings that are not UTF-8";
}

TEST(Gemma3, KeepsTheTagThatLlamaCppTakesForAControlToken) {
  const auto tokenizer = testing::from_environment("FIELDPRINT_GEMMA3_GGUF");
  if (!tokenizer) GTEST_SKIP() << "FIELDPRINT_GEMMA3_GGUF is not set";
  // In Gemma 3 this is a user-defined HTML tag; llama.cpp makes every token of this text a control token.
  EXPECT_EQ(tokenizer->encode("</s>"), (std::vector<std::int32_t>{212}));
  EXPECT_FALSE(tokenizer->is_end_of_generation(212));
}

TEST(Gemma3, TakesLittleMemory) {
  const auto tokenizer = testing::from_environment("FIELDPRINT_GEMMA3_GGUF");
  if (!tokenizer) GTEST_SKIP() << "FIELDPRINT_GEMMA3_GGUF is not set";
  EXPECT_EQ(tokenizer->size(), 262'144);
  EXPECT_LE(tokenizer->memory_bytes(), 24u << 20);
}

INSTANTIATE_TEST_SUITE_P(Models, Reference,
                         ::testing::Values(std::pair{"smollm2", "FIELDPRINT_SMOLLM2_GGUF"},
                                           std::pair{"gemma3", "FIELDPRINT_GEMMA3_GGUF"}),
                         [](const auto& test) { return std::string(test.param.first); });

}  // namespace
}  // namespace fieldprint::tokenizer
