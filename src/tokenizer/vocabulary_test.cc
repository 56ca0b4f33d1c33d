#include "tokenizer/vocabulary.h"

#include <gtest/gtest.h>

#include "base/sha256.h"
#include "tokenizer/small_vocabularies.h"

namespace fieldprint::tokenizer {
namespace {

std::span<const std::uint8_t> bytes_of(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

Vocabulary full() {
  Vocabulary v = small::sentencepiece();
  v.chat_template = "{{ bos_token }}";
  v.merges.push_back("a b");
  v.eot = 4;
  v.add_eos = true;
  return v;
}

TEST(Vocabulary, ReadsBackWhatWasWritten) {
  for (const Vocabulary& v : {small::byte_level(), small::sentencepiece(), full(), Vocabulary{}}) {
    const std::string bytes = serialize(v);
    const auto back = parse(bytes_of(bytes));
    ASSERT_TRUE(back.ok()) << back.error().message;
    EXPECT_EQ(*back, v);
    EXPECT_EQ(serialize(*back), bytes);
  }
}

// The bytes are part of a model's identity: a change of format needs a new version.
TEST(Vocabulary, FormatIsPinned) {
  Vocabulary v;
  v.kind = Kind::kSentencePiece;
  v.architecture = "x";
  v.add_bos = true;
  v.bos = small::add(v, "ab", TokenType::kControl, 1.0f);
  EXPECT_EQ(to_hex(bytes_of(serialize(v))),
            "4650564f01000000"
            "02010000"
            "0100000078"
            "00000000"
            "00000000"
            "01000000"
            "020000006162"
            "03"
            "010000000000803f"
            "00000000"
            "00000000"
            "ffffffff"
            "ffffffff"
            "ffffffff"
            "ffffffff");
}

TEST(Vocabulary, EveryTruncationIsAnError) {
  const std::string bytes = serialize(full());
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(parse(bytes_of(bytes).first(size)).ok()) << size;
  }
}

TEST(Vocabulary, WhatDoesNotFitIsAnErrorThatSaysSo) {
  const std::string good = serialize(full());
  const auto message = [](const std::string& bytes) { return parse(bytes_of(bytes)).error().message; };
  EXPECT_NE(message(good + '\0').find("1 bytes left over"), std::string::npos);
  EXPECT_NE(message("GGUF" + good.substr(4)).find("magic"), std::string::npos);
  std::string bad = good;
  bad[4] = 9;
  EXPECT_NE(message(bad).find("version 9"), std::string::npos);
  bad = good;
  bad[8] = 7;
  EXPECT_NE(message(bad).find("damaged"), std::string::npos);
  bad = good;
  bad[9] = 2;
  EXPECT_NE(message(bad).find("damaged"), std::string::npos) << "a flag is 0 or 1";
  bad = good;
  bad[bad.size() - 4] = '\x7f';
  bad[bad.size() - 1] = '\x7f';
  EXPECT_NE(message(bad).find("damaged"), std::string::npos) << "an id outside the vocabulary";
  EXPECT_EQ(parse(bytes_of(bad)).error().kind, ErrorKind::kCaller);
}

TEST(Vocabulary, DefaultsAreThoseOfLlamaCpp) {
  EXPECT_TRUE(defaults_for(Kind::kSentencePiece, "").add_bos);
  EXPECT_TRUE(defaults_for(Kind::kSentencePiece, "").add_space_prefix);
  EXPECT_TRUE(defaults_for(Kind::kBpe, "llama-bpe").add_bos);
  EXPECT_FALSE(defaults_for(Kind::kBpe, "smollm").add_bos);
  EXPECT_FALSE(defaults_for(Kind::kBpe, "llama-bpe").add_space_prefix);
}

}  // namespace
}  // namespace fieldprint::tokenizer
