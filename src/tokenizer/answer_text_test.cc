#include "tokenizer/answer_text.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tokenizer/small_vocabularies.h"

namespace fieldprint::tokenizer {
namespace {

constexpr std::int32_t kEnd = 2;
constexpr std::int32_t kUnknown = 0;

const Tokenizer& byte_level() {
  static const auto tokenizer = Tokenizer::make(small::byte_level()).value();
  return *tokenizer;
}

const Tokenizer& sentencepiece() {
  static const auto tokenizer = Tokenizer::make(small::sentencepiece()).value();
  return *tokenizer;
}

/// One token for each byte, so that everything can be cut everywhere.
std::vector<std::int32_t> bytes_of(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::int32_t> ids;
  for (const char byte : text) {
    std::int32_t found = -1;
    for (std::int32_t id = 0; id < tokenizer.size() && found < 0; ++id) {
      if (tokenizer.token_bytes(id) == std::string(1, byte)) found = id;
    }
    CHECK(found >= 0);
    ids.push_back(found);
  }
  return ids;
}

struct Said {
  std::string text;
  bool ended = false;
  std::size_t tokens = 0;  ///< taken until the end
};

/// Feeds tokens as an engine does: until one ends the answer, or to the last and then finish().
Said say(const Tokenizer& tokenizer, const std::vector<std::int32_t>& ids, std::vector<std::string> stops) {
  AnswerText answer(tokenizer, std::move(stops));
  Said said;
  for (const std::int32_t id : ids) {
    const AnswerText::Piece piece = answer.push(id);
    said.text += piece.text;
    ++said.tokens;
    if (piece.ended) {
      said.ended = true;
      return said;
    }
  }
  const AnswerText::Piece rest = answer.finish();
  said.text += rest.text;
  said.ended = rest.ended;
  return said;
}

Said say_bytes(std::string_view text, std::vector<std::string> stops) {
  return say(byte_level(), bytes_of(byte_level(), text), std::move(stops));
}

TEST(AnswerText, GivesAllTextWhereNothingStopsIt) {
  for (const char* text : {"", "hello", "two  words\n", "é 語 🎉"}) {
    const Said said = say_bytes(text, {});
    EXPECT_EQ(said.text, text);
    EXPECT_FALSE(said.ended);
  }
}

TEST(AnswerText, EndsBeforeAStopStringWhereverItIsCut) {
  const Said said = say_bytes("one STOP two", {"STOP"});
  EXPECT_EQ(said.text, "one ");
  EXPECT_TRUE(said.ended);
  EXPECT_EQ(said.tokens, 8U) << "the byte that completes it ends the answer";
  // "hello" is one token, and the stop string lies within it.
  const Said within = say(byte_level(), byte_level().encode("hello hello"), {"ell"});
  EXPECT_EQ(within.text, "h");
  EXPECT_EQ(within.tokens, 1U);
}

TEST(AnswerText, AStopStringAtTheVeryBeginningLeavesNothing) {
  const Said said = say_bytes("STOP", {"STOP"});
  EXPECT_EQ(said.text, "");
  EXPECT_TRUE(said.ended);
}

TEST(AnswerText, WhatOnlyBeganAStopStringIsGivenOut) {
  EXPECT_EQ(say_bytes("a STO b STOQ", {"STOP"}).text, "a STO b STOQ");
  EXPECT_FALSE(say_bytes("a STO b STOQ", {"STOP"}).ended);
  // At the end of the answer, too.
  EXPECT_EQ(say_bytes("a STO", {"STOP"}).text, "a STO");
  // What fails to go on may contain another beginning.
  EXPECT_EQ(say_bytes("aab", {"aab"}).text, "");
  EXPECT_EQ(say_bytes("aaab", {"aab"}).text, "a");
  EXPECT_EQ(say_bytes("ababac", {"abac"}).text, "ab");
}

TEST(AnswerText, HoldsBackNoMoreThanMayBeginAStopString) {
  AnswerText answer(byte_level(), {"xyz", "yzw"});
  const auto push = [&](char byte) { return answer.push(bytes_of(byte_level(), {&byte, 1})[0]).text; };
  EXPECT_EQ(push('a'), "a");
  EXPECT_EQ(push('x'), "");
  EXPECT_EQ(push('y'), "");
  EXPECT_EQ(push('w'), "xyw");
  EXPECT_EQ(push('x'), "");
  EXPECT_EQ(push('x'), "x");
  EXPECT_EQ(push('y'), "");
  const AnswerText::Piece piece = answer.push(bytes_of(byte_level(), "z")[0]);
  EXPECT_TRUE(piece.ended);
  EXPECT_EQ(piece.text, "");
}

TEST(AnswerText, OfSeveralStopStringsTheFirstInTheTextCounts) {
  EXPECT_EQ(say_bytes("one two three", {"three", "two"}).text, "one ");
  EXPECT_EQ(say_bytes("one two three", {"e t", "two"}).text, "on");
  // One that is complete ends the answer, though a longer one has begun before it.
  EXPECT_EQ(say_bytes("abcd", {"abcx", "bc"}).text, "a");
  EXPECT_EQ(say_bytes("abcd", {"abcd", "bc"}).text, "a");
  EXPECT_EQ(say_bytes("abc", {"abc", "ab"}).text, "");
}

// For short strings over two letters, every stop pair against the plain definition: the first place at which
// a stop string is complete.
TEST(AnswerText, AgreesWithTheDefinitionOnAllShortTexts) {
  const auto strings = [](std::size_t length) {
    std::vector<std::string> out;
    for (std::size_t bits = 0; bits < (std::size_t{1} << length); ++bits) {
      std::string text;
      for (std::size_t i = 0; i < length; ++i) text += (bits >> i) % 2 == 0 ? 'a' : 'h';
      out.push_back(text);
    }
    return out;
  };
  const auto letters = bytes_of(byte_level(), "ah");
  std::vector<std::string> stops;
  for (std::size_t length = 1; length <= 3; ++length) {
    for (const std::string& text : strings(length)) stops.push_back(text);
  }
  for (const std::string& text : strings(6)) {
    std::vector<std::int32_t> ids;
    for (const char letter : text) ids.push_back(letters[letter == 'a' ? 0 : 1]);
    for (const std::string& one : stops) {
      for (const std::string& two : stops) {
        std::string expected = text;
        bool ended = false;
        for (std::size_t end = 1; end <= text.size() && !ended; ++end) {
          const std::string seen = text.substr(0, end);
          const std::size_t cut = std::min(seen.find(one), seen.find(two));
          if (cut == std::string::npos) continue;
          expected = seen.substr(0, cut);
          ended = true;
        }
        const Said said = say(byte_level(), ids, {one, two});
        ASSERT_EQ(said.text, expected) << text << " " << one << " " << two;
        ASSERT_EQ(said.ended, ended) << text << " " << one << " " << two;
      }
    }
  }
}

TEST(AnswerText, AnEndTokenEndsTheAnswerAndHasNoText) {
  std::vector<std::int32_t> ids = bytes_of(byte_level(), "ab");
  ids.push_back(kEnd);
  ids.push_back(ids[0]);
  const Said said = say(byte_level(), ids, {"bc"});
  EXPECT_EQ(said.text, "ab") << "what was held back belongs to the answer";
  EXPECT_TRUE(said.ended);
  EXPECT_EQ(said.tokens, 3U);
  const auto turn = byte_level().control_token("<|im_end|>");
  ASSERT_TRUE(turn);
  EXPECT_TRUE(say(byte_level(), {*turn}, {}).ended);
}

TEST(AnswerText, ControlTokensThatEndNothingHaveNoText) {
  std::vector<std::int32_t> ids = bytes_of(byte_level(), "ST");
  ids.push_back(kUnknown);
  for (const std::int32_t id : bytes_of(byte_level(), "OP")) ids.push_back(id);
  const Said said = say(byte_level(), ids, {"STOP"});
  EXPECT_EQ(said.text, "");
  EXPECT_TRUE(said.ended);
}

TEST(AnswerText, ACharacterIsGivenOutWhenItIsComplete) {
  const std::string text = "é語🎉";
  AnswerText answer(byte_level(), {});
  std::vector<std::string> pieces;
  for (const std::int32_t id : bytes_of(byte_level(), text)) {
    const std::string piece = answer.push(id).text;
    if (!piece.empty()) pieces.push_back(piece);
  }
  EXPECT_EQ(pieces, (std::vector<std::string>{"é", "語", "🎉"}));
}

TEST(AnswerText, AnIncompleteCharacterAtTheEndIsKept) {
  const std::string text = "a\xe8\xaa";
  for (const bool by_token : {false, true}) {
    std::vector<std::int32_t> ids = bytes_of(byte_level(), text);
    if (by_token) ids.push_back(kEnd);
    const Said said = say(byte_level(), ids, {"zzz"});
    EXPECT_EQ(said.text, text);
    EXPECT_EQ(said.ended, by_token);
  }
}

TEST(AnswerText, AStopStringOfManyByteCharactersIsFound) {
  EXPECT_EQ(say_bytes("ab語🎉cd", {"語🎉"}).text, "ab");
  EXPECT_EQ(say_bytes("ab語🎂cd", {"語🎉"}).text, "ab語🎂cd");
}

TEST(AnswerText, AStopStringThatAppearsOnlyInTheLastHeldBytesCounts) {
  // The stop string is the beginning of a character that never comes.
  const Said said = say_bytes("ab\xe8\xaa", {"b\xe8\xaa"});
  EXPECT_EQ(said.text, "a");
  EXPECT_TRUE(said.ended);
}

TEST(AnswerText, SentencePieceByteTokensMakeCharactersAndStops) {
  std::vector<std::int32_t> ids = sentencepiece().encode("hello 語 world", {.continues = true});
  const Said whole = say(sentencepiece(), ids, {});
  EXPECT_EQ(whole.text, "hello 語 world");
  const Said cut = say(sentencepiece(), ids, {"語"});
  EXPECT_EQ(cut.text, "hello ");
  EXPECT_TRUE(cut.ended);
}

}  // namespace
}  // namespace fieldprint::tokenizer
