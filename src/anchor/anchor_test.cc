#include "anchor/anchor.h"

#include <gtest/gtest.h>

#include "base/bounds.h"
#include "base/file.h"
#include "base/temporary_folder.h"

namespace fieldprint::anchor {
namespace {

using namespace std::string_literals;

Anchor policy(std::string_view text, std::string_view name = {}) {
  auto anchor = Anchor::make(AnchorType::kPolicy, name, text);
  EXPECT_TRUE(anchor.ok()) << anchor.error().message;
  return *anchor;
}

std::string canonical(const Anchor& anchor) {
  const auto bytes = anchor.canonical_bytes();
  return {bytes.begin(), bytes.end()};
}

std::vector<std::uint8_t> bytes_of(std::string_view text) { return {text.begin(), text.end()}; }

TEST(Anchor, CanonicalBytesAreTheDocumentedOnesAndTheirHashIsTheId) {
  const Anchor named = policy("Refuse refunds over 100.\nBe brief.", "refunds v1");
  EXPECT_EQ(canonical(named),
            "fieldprint-anchor 1\ntype policy\nname refunds v1\n\nRefuse refunds over 100.\nBe brief.");
  EXPECT_EQ(named.id(), sha256(canonical(named)));
  EXPECT_EQ(canonical(*Anchor::make(AnchorType::kMemory, "", "x")), "fieldprint-anchor 1\ntype memory\n\nx");
}

TEST(Anchor, TheSameTextFromAnyEditorIsTheSameAnchor) {
  const Anchor expected = policy("a\n\nb");
  for (const auto& text : {"a\r\n\r\nb\r\n"s, "a\r\rb\r"s, "a\n\nb\n\n\n"s,
                           "\xef\xbb\xbf"
                           "a\n\nb\n"s}) {
    EXPECT_EQ(policy(text), expected);
  }
  EXPECT_NE(policy("a\nb").id(), expected.id());
  EXPECT_NE(policy(" a\n\nb").id(), expected.id());
}

TEST(Anchor, TypeNameAndTextAllBelongToTheIdentity) {
  const Anchor base = policy("x", "n");
  EXPECT_NE(base.id(), policy("x").id());
  EXPECT_NE(base.id(), policy("x", "m").id());
  EXPECT_NE(base.id(), Anchor::make(AnchorType::kIdentity, "n", "x")->id());
  // A text that imitates the head stays text.
  EXPECT_NE(policy("name n\n\nx").id(), base.id());
}

TEST(Anchor, ParseIsTheInverseOfCanonicalBytes) {
  for (const Anchor& anchor :
       {policy("x"), policy("x\n\ny", "n"), policy("name n\n\nx"), policy("\n\nlead")}) {
    auto parsed = Anchor::parse(anchor.canonical_bytes());
    ASSERT_TRUE(parsed.ok()) << parsed.error().message;
    EXPECT_EQ(*parsed, anchor);
  }
}

TEST(Anchor, ParseRefusesBytesThatAreNotCanonical) {
  for (const auto& text :
       {""s, "fieldprint-anchor 1"s, "fieldprint-anchor 2\ntype policy\n\nx"s, "fieldprint-anchor 1\n\nx"s,
        "fieldprint-anchor 1\ntype law\n\nx"s, "fieldprint-anchor 1\ntype policy\nx"s,
        "fieldprint-anchor 1\ntype policy\n\n"s, "fieldprint-anchor 1\ntype policy\nname \n\nx"s,
        "fieldprint-anchor 1\ntype policy\n\nx\n"s, "fieldprint-anchor 1\ntype policy\n\na\r\nb"s,
        "fieldprint-anchor 1\ntype policy\n\nx\0y"s, "fieldprint-anchor 1\ntype policy\n\n\xff"s,
        "fieldprint-anchor 1\ntype policy\nname a\tb\n\nx"s}) {
    EXPECT_FALSE(Anchor::parse(bytes_of(text)).ok()) << text;
  }
}

TEST(Anchor, RefusesWhatCannotBeAnAnchor) {
  const auto refused = [](std::string_view text, std::string_view name = {}) {
    auto anchor = Anchor::make(AnchorType::kPolicy, name, text);
    return !anchor.ok() && anchor.error().kind == ErrorKind::kCaller;
  };
  EXPECT_TRUE(refused(""));
  EXPECT_TRUE(refused("\r\n\n"));
  EXPECT_TRUE(refused("a\0b"s));
  EXPECT_TRUE(refused("\xc3"));
  EXPECT_TRUE(refused("x", "two\nlines"));
  EXPECT_TRUE(refused("x", std::string(257, 'n')));
  EXPECT_TRUE(refused(std::string(bounds::kMaxAnchorBytes + 1, 'x')));
  EXPECT_FALSE(refused(std::string(bounds::kMaxAnchorBytes, 'x')));
}

TEST(Anchor, LoadsATextFileAndNamesItInErrors) {
  const auto folder = TemporaryFolder::make();
  ASSERT_TRUE(folder.ok());
  const std::string path = folder->file("policy.txt");
  ASSERT_TRUE(write_file_atomically(path, std::string_view("Be kind.\r\n")).ok());
  EXPECT_EQ(*Anchor::load(path), policy("Be kind."));
  ASSERT_TRUE(write_file_atomically(path, std::string_view("\xff")).ok());
  auto broken = Anchor::load(path);
  ASSERT_FALSE(broken.ok());
  EXPECT_NE(broken.error().message.find(path), std::string::npos);
  EXPECT_FALSE(Anchor::load(folder->file("none")).ok());
}

TEST(AnchorSet, OrderIsPartOfTheDigestAndTextsAreJoinedByABlankLine) {
  const Anchor a = policy("a");
  const Anchor b = policy("b");
  auto ab = AnchorSet::make({a, b});
  auto ba = AnchorSet::make({b, a});
  ASSERT_TRUE(ab.ok() && ba.ok());
  EXPECT_EQ(ab->text(), "a\n\nb");
  EXPECT_NE(ab->digest(), ba->digest());
  EXPECT_EQ(ab->digest(),
            Sha256().update("fieldprint-anchor-set 1\n").update(a.id()).update(b.id()).finish());
  EXPECT_NE(AnchorSet().digest(), AnchorSet::make({a})->digest());
  EXPECT_EQ(AnchorSet().text(), "");
}

TEST(AnchorSet, RefusesTheSameAnchorTwiceAndTooMany) {
  EXPECT_FALSE(AnchorSet::make({policy("a"), policy("b"), policy("a\n")}).ok());
  std::vector<Anchor> many;
  for (int i = 0; i < bounds::kMaxAnchors; ++i) many.push_back(policy(std::to_string(i)));
  EXPECT_TRUE(AnchorSet::make(many).ok());
  many.push_back(policy("more"));
  EXPECT_FALSE(AnchorSet::make(many).ok());
}

}  // namespace
}  // namespace fieldprint::anchor
