#include "ledger/signed_note.h"

#include <gtest/gtest.h>

#include <string>

namespace fieldprint::ledger {
namespace {

// Keys, text and signatures of the tests of golang.org/x/mod/sumdb/note.
constexpr std::string_view kPeter = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
constexpr std::string_view kPeterSecret =
    "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
constexpr std::string_view kEnoch = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";
const std::string kText =
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
const std::string kPeterLine =
    "— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
const std::string kEnochLine =
    "— EnochRoot "
    "rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";

VerifierKey peter() { return *VerifierKey::parse(kPeter); }
VerifierKey enoch() { return *VerifierKey::parse(kEnoch); }

template <class Parse>
void expect_every_mangling_refused(std::string text, Parse parse) {
  ASSERT_TRUE(parse(text).ok());
  for (std::size_t begin = 0; begin <= text.size(); ++begin) {
    for (std::size_t end = begin; end <= text.size(); ++end) {
      if (begin != 0 || end != text.size()) {
        EXPECT_FALSE(parse(text.substr(begin, end - begin)).ok());
      }
    }
  }
  for (char& c : text) {
    ++c;
    EXPECT_FALSE(parse(text).ok()) << text;
    --c;
  }
}

TEST(NoteKey, VerifierTextIsReadAndWrittenLikeGoDoes) {
  EXPECT_EQ(peter().name(), "PeterNeumann");
  EXPECT_EQ(peter().id(), 0xc74f20a3u);
  EXPECT_EQ(peter().text(), kPeter);
  expect_every_mangling_refused(std::string(kPeter),
                                [](std::string_view text) { return VerifierKey::parse(text); });
  // Keys of another length and algorithm, with a key ID that matches them.
  EXPECT_FALSE(
      VerifierKey::parse("PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==").ok());
  EXPECT_FALSE(VerifierKey::parse("PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").ok());
}

TEST(NoteKey, SignerTextIsReadAndWrittenLikeGoDoes) {
  const auto signer = SignerKey::parse(kPeterSecret);
  ASSERT_TRUE(signer.ok());
  EXPECT_EQ(signer->verifier(), peter());
  EXPECT_EQ(signer->secret_text(), kPeterSecret);
  expect_every_mangling_refused(std::string(kPeterSecret),
                                [](std::string_view text) { return SignerKey::parse(text); });
}

TEST(NoteKey, ErrorsNeverQuoteTheSecret) {
  std::string broken(kPeterSecret);
  broken.back() = 'y';
  const auto signer = SignerKey::parse(broken);
  ASSERT_FALSE(signer.ok());
  EXPECT_EQ(signer.error().message.find("AYEKFAL"), std::string::npos);
}

TEST(NoteKey, RefusesNamesThatWouldBreakANote) {
  for (const std::string name : {"", "a b", "a+b", "a\nb", "a\xc2\xa0z", "\xe3\x80\x80", "bad\xff", "tab\t",
                                 "nul\x01", "\xe2\x80\xa8"}) {
    EXPECT_FALSE(SignerKey::generate(name).ok()) << name;
  }
  EXPECT_FALSE(SignerKey::generate(std::string(257, 'a')).ok());
  EXPECT_TRUE(SignerKey::generate("example.com/ledger").ok());
}

TEST(SignedNote, SignsToTheBytesThatGoSigns) {
  auto note = sign_note(kText, *SignerKey::parse(kPeterSecret));
  ASSERT_TRUE(note.ok());
  EXPECT_EQ(format_note(*note), kText + "\n" + kPeterLine);
}

TEST(SignedNote, OpensWithOneKnownKeyAmongUnknownOnes) {
  const std::string note = kText + "\n" + kPeterLine + kEnochLine;
  for (const auto& known : {std::vector{peter()}, std::vector{enoch()}, std::vector{peter(), enoch()}}) {
    auto opened = open_note(note, known);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    EXPECT_EQ(opened->text, kText);
    EXPECT_EQ(opened->signatures.size(), 2u);
    EXPECT_EQ(format_note(*opened), note);
  }
}

TEST(SignedNote, IsRefutedWithoutAKnownKeyOrWithOneBadSignatureByAKnownKey) {
  const std::string note = kText + "\n" + kPeterLine + kEnochLine;
  auto none = open_note(note, {});
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().kind, ErrorKind::kRefuted);

  std::string altered = note;
  altered[3] = 'Y';
  EXPECT_EQ(open_note(altered, std::vector{peter()}).error().kind, ErrorKind::kRefuted);

  // Enoch's line carries another signature with his key ID; Peter's is good.
  std::string bad_line = kEnochLine;
  bad_line[bad_line.size() - 10] = bad_line[bad_line.size() - 10] == 'A' ? 'B' : 'A';
  auto bad = open_note(kText + "\n" + kPeterLine + bad_line, std::vector{peter(), enoch()});
  ASSERT_FALSE(bad.ok());
  EXPECT_NE(bad.error().message.find("EnochRoot"), std::string::npos);
  EXPECT_TRUE(open_note(kText + "\n" + kPeterLine + bad_line, std::vector{peter()}).ok());
}

TEST(SignedNote, TheLastBlankLineSeparatesTheText) {
  auto note = sign_note("a\n\n— not a signature\n\nb\n", *SignerKey::parse(kPeterSecret));
  ASSERT_TRUE(note.ok());
  auto opened = open_note(format_note(*note), std::vector{peter()});
  ASSERT_TRUE(opened.ok());
  EXPECT_EQ(opened->text, "a\n\n— not a signature\n\nb\n");
}

TEST(SignedNote, AcceptsAHundredSignaturesAndNoMore) {
  std::string note = kText + "\n";
  for (int i = 0; i < 100; ++i) note += kPeterLine;
  EXPECT_TRUE(open_note(note, std::vector{peter()}).ok());
  EXPECT_FALSE(open_note(note + kPeterLine, std::vector{peter()}).ok());
}

TEST(SignedNote, RefusesMalformedNotes) {
  using namespace std::string_literals;
  const std::string without_newline = kPeterLine.substr(0, kPeterLine.size() - 1);
  for (const std::string& note : {""s,
                                  "\n"s,
                                  "\n\n"s,
                                  kText,
                                  kText + "\n",
                                  kText + kPeterLine,
                                  kText + "\n" + without_newline,
                                  "\x01" + kText + "\n" + kPeterLine,
                                  "\xff" + kText + "\n" + kPeterLine,
                                  "a\rb\n\n" + kPeterLine,
                                  "a\0b\n\n"s + kPeterLine,
                                  kText + "\n— Bad Name AAAAAAAA\n",
                                  kText + "\n—  AAAAAAAA\n",
                                  kText + "\n— a+b AAAAAAAA\n",
                                  kText + "\n— a\n",
                                  kText + "\n— a AAAA\n",
                                  kText + "\n— a AAAAAAA\n",
                                  kText + "\n— a AAAAAAAA \n",
                                  kText + "\n- a AAAAAAAA\n",
                                  kText + "\n" + kPeterLine + "more\n",
                                  kText + "\n" + kPeterLine + "\n" + "x\n"}) {
    auto parsed = parse_note(note);
    ASSERT_FALSE(parsed.ok()) << note;
    EXPECT_EQ(parsed.error().kind, ErrorKind::kCaller);
  }
  EXPECT_FALSE(parse_note(std::string(1 << 20, 'a') + "\n\n" + kPeterLine).ok());
}

TEST(SignedNote, RefusesToSignWhatNoNoteMayHold) {
  const auto signer = *SignerKey::parse(kPeterSecret);
  for (const std::string text : {"", "abc", "a\tb\n", "\xff\n"}) EXPECT_FALSE(sign_note(text, signer).ok());
}

}  // namespace
}  // namespace fieldprint::ledger
