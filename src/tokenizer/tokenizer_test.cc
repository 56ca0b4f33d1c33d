#include "tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <thread>

#include "tokenizer/small_vocabularies.h"

namespace fieldprint::tokenizer {
namespace {

using Ids = std::vector<std::int32_t>;

std::unique_ptr<Tokenizer> made(Vocabulary vocabulary) {
  auto result = Tokenizer::make(std::move(vocabulary));
  EXPECT_TRUE(result.ok()) << result.error().message;
  return std::move(result).value();
}

std::string refusal(Vocabulary vocabulary) {
  const auto result = Tokenizer::make(std::move(vocabulary));
  EXPECT_FALSE(result.ok());
  return result.ok() ? "" : result.error().message;
}

std::vector<std::string> pieces(const Tokenizer& tokenizer, std::string_view text,
                                EncodeOptions options = {}) {
  std::vector<std::string> out;
  for (const std::int32_t id : tokenizer.encode(text, options))
    out.push_back(tokenizer.token_bytes(id, true));
  return out;
}

using Pieces = std::vector<std::string>;

std::string random_bytes(std::mt19937& random, std::size_t size) {
  static constexpr std::string_view kParts[] = {"hello", " hello",     "aaaa",   "  ",     "\n",
                                                "<s>",   "<|im_end|>", "<tool>", "\u00e9", "\U0001f600",
                                                "\xff",  "\xe2\x96",   "7",      "o w",    "\x80"};
  std::string out;
  while (out.size() < size) {
    if (random() % 4 == 0) {
      out.push_back(static_cast<char>(random()));
    } else {
      out += kParts[random() % std::size(kParts)];
    }
  }
  return out;
}

TEST(ByteLevel, MergesByRankWithinWords) {
  const auto t = made(small::byte_level());
  EXPECT_EQ(pieces(*t, "hello hello"), (Pieces{"hello", " hello"}));
  EXPECT_EQ(pieces(*t, "hell oll"), (Pieces{"hell", " ", "o", "ll"}));
  EXPECT_EQ(pieces(*t, "aaaaaaa"), (Pieces{"aaaa", "aa", "a"}));
  EXPECT_EQ(pieces(*t, "12 hello"), (Pieces{"1", "2", " hello"}));
}

TEST(ByteLevel, GivesTheSameForShortAndLongWords) {
  const auto t = made(small::byte_level());
  for (std::size_t n : {31u, 32u, 33u, 4096u}) {
    const Ids ids = t->encode(std::string(n, 'a'));
    EXPECT_EQ(ids.size(), n / 4 + (n % 4) / 2 + n % 2) << n;
    for (std::size_t i = 0; i < n / 4; ++i) EXPECT_EQ(t->token_bytes(ids[i]), "aaaa");
  }
}

TEST(ByteLevel, PassesBytesThroughThatAreNotUtf8) {
  const auto t = made(small::byte_level());
  EXPECT_EQ(pieces(*t,
                   "a\xff\xfe"
                   "b"),
            (Pieces{"a", "\xff", "\xfe", "b"}));
  EXPECT_EQ(pieces(*t, "\xe2\x82"), (Pieces{"\xe2", "\x82"}));
}

TEST(ByteLevel, TellsAUserDefinedCharacterFromTheByteOfThatImage) {
  const auto t = made(small::byte_level());
  EXPECT_EQ(t->decode(t->encode("\u00e9")), "\u00e9");
  EXPECT_EQ(t->decode(t->encode("\xe9")), "\xe9");
  EXPECT_NE(t->encode("\u00e9"), t->encode("\xe9"));
}

TEST(ByteLevel, LeavesOutBytesThatTheVocabularyLacks) {
  Vocabulary poor = small::byte_level();
  TextArena tokens;
  for (std::size_t i = 0; i < poor.tokens.size(); ++i)
    tokens.push_back(poor.tokens[i] == "z" ? "zz" : poor.tokens[i]);
  poor.tokens = std::move(tokens);
  const auto t = made(std::move(poor));
  EXPECT_EQ(t->decode(t->encode("azb"), true), "ab");
}

TEST(ByteLevel, TakesWholeWordsFirstWhereTheModelDoes) {
  Vocabulary v = small::byte_level();
  v.pre_tokenizer = "llama-bpe";
  small::add(v, "xyz", TokenType::kNormal);
  EXPECT_EQ(pieces(*made(v), "xyz"), (Pieces{"xyz"}));
  v.pre_tokenizer = "qwen2";
  EXPECT_EQ(pieces(*made(v), "xyz"), (Pieces{"x", "y", "z"}));
}

TEST(SentencePiece, MergesByScoreAndReadsSpacesBack) {
  const auto t = made(small::sentencepiece());
  EXPECT_EQ(pieces(*t, "hello hello"), (Pieces{"hello", " hello"}));
  EXPECT_EQ(pieces(*t, "a b"), (Pieces{"a", " ", "b"}));
  EXPECT_EQ(pieces(*t, "hello   b"), (Pieces{"hello", "   ", "b"}));
}

TEST(SentencePiece, MergesAcrossASpaceWhereATokenDoes) {
  const auto t = made(small::sentencepiece());
  EXPECT_EQ(pieces(*t, "xo wx"), (Pieces{"x", "o w", "x"}));
}

TEST(SentencePiece, FallsBackToBytes) {
  const auto t = made(small::sentencepiece());
  EXPECT_EQ(pieces(*t, "\u00fc"), (Pieces{"\xc3", "\xbc"}));
  EXPECT_EQ(pieces(*t,
                   "a\xff"
                   "b"),
            (Pieces{"a", "\xff", "b"}));
  EXPECT_EQ(t->encode("<0x41>").size(), 6u) << "the text of a byte token is no byte";
}

TEST(SentencePiece, PutsASpaceFirstIfTheVocabularySaysSo) {
  Vocabulary v = small::sentencepiece();
  v.add_space_prefix = true;
  const auto t = made(v);
  EXPECT_EQ(pieces(*t, "hello"), (Pieces{" hello"}));
  EXPECT_EQ(pieces(*t, "hello", {.continues = true}), (Pieces{"hello"}));
  EXPECT_EQ(t->decode(t->encode("hello")), "hello");
  EXPECT_EQ(t->decode(t->encode("hello", {.add_bos = true})), "hello");
  EXPECT_EQ(t->decode(t->encode(" hello")), " hello");
}

TEST(SentencePiece, SpellsSpacesInBytesIfItMust) {
  Vocabulary v = small::sentencepiece();
  TextArena tokens;
  for (std::size_t i = 0; i < v.tokens.size(); ++i)
    tokens.push_back(v.tokens[i] == "\u2581" ? "zzz" : v.tokens[i]);
  v.tokens = std::move(tokens);
  const auto t = made(v);
  EXPECT_EQ(t->decode(t->encode("a b")), "a b");
}

TEST(SpecialTokens, LongestFirstWhereverItStands) {
  const auto t = made(small::byte_level());
  EXPECT_EQ(pieces(*t, "<tool><tool><tool>"), (Pieces{"<tool><tool>", "<tool>"}));
  const auto s = made(small::sentencepiece());
  EXPECT_EQ(pieces(*s, "     "), (Pieces{"   ", "  "}));
  EXPECT_EQ(pieces(*s, "\n\n\n"), (Pieces{"\n\n", "\n"}));
}

TEST(SpecialTokens, ALongerTokenLaterBeatsAShorterOneBefore) {
  Vocabulary v = small::byte_level();
  small::add(v, "xy", TokenType::kUserDefined);
  small::add(v, "x", TokenType::kUserDefined);
  small::add(v, "yzw", TokenType::kUserDefined);
  EXPECT_EQ(pieces(*made(v), "xyzw"), (Pieces{"x", "yzw"}));
}

TEST(SpecialTokens, AreParsedOnRequestOnly) {
  for (const Vocabulary& v : {small::byte_level(), small::sentencepiece()}) {
    const auto t = made(v);
    for (const char* text : {"<|im_end|>", "<s>", "</s>", "<unk>", "<end_of_turn>", "hello<s>hello"}) {
      for (const std::int32_t id : t->encode(text)) EXPECT_FALSE(t->is_control(id) || id == v.unk) << text;
      EXPECT_EQ(t->decode(t->encode(text)), text);
    }
    EXPECT_EQ(t->encode("<s>", {.parse_special = true}), Ids{1});
    EXPECT_EQ(t->decode(Ids{1}), "");
    EXPECT_EQ(t->decode(Ids{1}, true), "<s>");
  }
}

TEST(SpecialTokens, MarkersOfChatFormatsAreControlTokensWhateverTheFileSays) {
  Vocabulary v = small::byte_level();
  v.types[3] = TokenType::kUserDefined;
  const auto t = made(v);
  EXPECT_TRUE(t->is_control(3));
  EXPECT_GT(t->encode("<|im_start|>").size(), 1u);
}

TEST(Tokenizer, AddsBosOnlyIfTheVocabularySaysSo) {
  EXPECT_EQ(made(small::sentencepiece())->encode("", {.add_bos = true}), Ids{1});
  EXPECT_EQ(made(small::sentencepiece())->encode(""), Ids{});
  EXPECT_EQ(made(small::byte_level())->encode("", {.add_bos = true}), Ids{});
}

TEST(Tokenizer, EveryByteStringReadsBack) {
  std::mt19937 random(7);
  Vocabulary prefixed = small::sentencepiece();
  prefixed.add_space_prefix = true;
  for (const Vocabulary& v : {small::byte_level(), small::sentencepiece(), prefixed}) {
    const auto t = made(v);
    for (int i = 0; i < 2000; ++i) {
      const std::string text = random_bytes(random, random() % 100);
      if (v.kind == Kind::kSentencePiece && text.find("\xe2\x96\x81") != std::string::npos) continue;
      ASSERT_EQ(t->decode(t->encode(text)), text) << ::testing::PrintToString(text);
    }
  }
}

TEST(Tokenizer, EveryKnownPreTokenizerKeepsEveryByte) {
  const std::string list = refusal([] {
    Vocabulary v = small::byte_level();
    v.pre_tokenizer = "unheard-of";
    return v;
  }());
  std::size_t at = list.find("known are: ") + 11;
  int names = 0;
  std::mt19937 random(8);
  while (at < list.size()) {
    const std::size_t end = std::min(list.find(", ", at), list.size());
    Vocabulary v = small::byte_level();
    v.pre_tokenizer = list.substr(at, end - at);
    const auto t = made(v);
    for (int i = 0; i < 100; ++i) {
      const std::string text = random_bytes(random, 60) + " I'm 12345 \r\n\t  Caf\u00e9 \u4f60\u597d ";
      ASSERT_EQ(t->decode(t->encode(text)), text) << v.pre_tokenizer;
    }
    ++names;
    at = end + 2;
  }
  EXPECT_GE(names, 20);
}

TEST(Tokenizer, ConcurrentUseGivesTheSameIds) {
  const auto t = made(small::byte_level());
  std::mt19937 random(9);
  const std::string text = random_bytes(random, 20'000);
  const Ids expected = t->encode(text);
  std::vector<Ids> got(4);
  {
    std::vector<std::jthread> threads;
    for (Ids& ids : got) threads.emplace_back([&] { ids = t->encode(text); });
  }
  for (const Ids& ids : got) EXPECT_EQ(ids, expected);
}

TEST(Tokenizer, LongWordsTakeNoQuadraticTime) {
  for (const Vocabulary& v : {small::byte_level(), small::sentencepiece()}) {
    const auto t = made(v);
    for (const char* unit : {"a", " ", "\n", "\xff", "hello"}) {
      std::string text;
      while (text.size() < 1'000'000) text += unit;
      EXPECT_EQ(t->decode(t->encode(text)), text);  // minutes if it were quadratic
    }
  }
}

TEST(Tokenizer, IdsOutsideTheVocabularyStandForNothing) {
  const auto t = made(small::byte_level());
  EXPECT_EQ(t->decode(Ids{-1, t->size(), 1 << 30}), "");
  EXPECT_FALSE(t->is_control(-1));
  EXPECT_FALSE(t->is_end_of_generation(t->size()));
}

TEST(Tokenizer, KnowsTheEndsOfGeneration) {
  const auto t = made(small::byte_level());
  EXPECT_TRUE(t->is_end_of_generation(*t->eos()));
  EXPECT_TRUE(t->is_end_of_generation(*t->control_token("<|im_end|>")));
  EXPECT_FALSE(t->is_end_of_generation(*t->control_token("<|im_start|>")));
}

TEST(Tokenizer, RefusesVocabulariesThatDoNotFitTogether) {
  Vocabulary v = small::byte_level();
  v.pre_tokenizer = "unheard-of";
  EXPECT_NE(refusal(v).find("unheard-of\" is not known; known are: default, gpt-2"), std::string::npos);
  v = small::byte_level();
  v.types.pop_back();
  EXPECT_NE(refusal(v).find("token types for"), std::string::npos);
  v = small::sentencepiece();
  v.scores.pop_back();
  EXPECT_NE(refusal(v).find("scores for"), std::string::npos);
  v = small::sentencepiece();
  v.scores[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_NE(refusal(v).find("score of token 5"), std::string::npos);
  v = small::byte_level();
  v.eos = 1 << 20;
  EXPECT_NE(refusal(v).find("1048576"), std::string::npos);
  v = small::byte_level();
  v.merges.push_back("he nope");
  EXPECT_NE(refusal(v).find("he nope"), std::string::npos);
  v = small::byte_level();
  v.merges.push_back("single");
  EXPECT_NE(refusal(v).find("single"), std::string::npos);
  v = small::byte_level();
  v.bos.reset();
  v.add_bos = true;
  EXPECT_NE(refusal(v).find("add_bos"), std::string::npos);
  EXPECT_NE(refusal(Vocabulary{}).find("no tokens"), std::string::npos);
}

TEST(StreamDecoder, HoldsBackIncompleteCharactersOnly) {
  const auto t = made(small::byte_level());
  const auto byte = [&](const char* bytes) { return t->encode(bytes)[0]; };
  StreamDecoder stream(*t);
  EXPECT_EQ(stream.push(byte("\xf0")), "");
  EXPECT_EQ(stream.push(byte("\x9f")), "");
  EXPECT_EQ(stream.push(byte("\x98")), "");
  EXPECT_EQ(stream.push(byte("\x80")), "\U0001f600");
  EXPECT_EQ(stream.push(byte("\xff")), "\xff");
  EXPECT_EQ(stream.push(byte("\xe2")), "");
  EXPECT_EQ(stream.push(byte("a")),
            "\xe2"
            "a");
  EXPECT_EQ(stream.push(byte("\xed")), "");
  EXPECT_EQ(stream.push(byte("\xa0")), "\xed\xa0") << "a surrogate can never be completed";
  EXPECT_EQ(stream.push(byte("\xc3")), "");
  EXPECT_EQ(stream.finish(), "\xc3");
}

TEST(StreamDecoder, PiecesTogetherAreTheText) {
  std::mt19937 random(10);
  for (const Vocabulary& v : {small::byte_level(), small::sentencepiece()}) {
    const auto t = made(v);
    for (int i = 0; i < 500; ++i) {
      const Ids ids = t->encode(random_bytes(random, 60));
      StreamDecoder stream(*t);
      std::string text;
      for (const std::int32_t id : ids) text += stream.push(id);
      EXPECT_EQ(text + stream.finish(), t->decode(ids));
    }
  }
}

}  // namespace
}  // namespace fieldprint::tokenizer
