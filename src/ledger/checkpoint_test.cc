#include "ledger/checkpoint.h"

#include <gtest/gtest.h>

#include <string>

#include "base/base64.h"

namespace fieldprint::ledger {
namespace {

// The example of c2sp.org/tlog-checkpoint.
const std::string kExample =
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
const std::string kExampleSignature =
    "— example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n";

TEST(Checkpoint, ReadsTheExampleOfTheSpecification) {
  auto note = parse_note(kExample + "\n" + kExampleSignature);
  ASSERT_TRUE(note.ok());
  auto checkpoint = parse_checkpoint(note->text);
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_EQ(checkpoint->origin, "example.com/behind-the-sofa");
  EXPECT_EQ(checkpoint->size, 20852163u);
  EXPECT_EQ(base64_encode(checkpoint->root), "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=");
  EXPECT_EQ(*format_checkpoint(*checkpoint), kExample);
}

TEST(Checkpoint, ExtensionLinesRoundTrip) {
  auto checkpoint = parse_checkpoint(kExample + "one\ntwo 2\n");
  ASSERT_TRUE(checkpoint.ok());
  EXPECT_EQ(checkpoint->extensions, (std::vector<std::string>{"one", "two 2"}));
  EXPECT_EQ(*format_checkpoint(*checkpoint), kExample + "one\ntwo 2\n");
}

TEST(Checkpoint, RefusesEveryOtherForm) {
  const std::string root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
  for (const std::string& text :
       {std::string(), std::string("\n1\n") + root, "o\n" + root, "o\n01\n" + root, "o\n-1\n" + root,
        "o\n+1\n" + root, "o\n 1\n" + root, "o\n1 \n" + root, "o\n0x1\n" + root, "o\n\n" + root,
        "o\n18446744073709551616\n" + root, std::string("o\n1\n"), std::string("o\n1\nAAAA\n"),
        "o\n1\n" + root.substr(0, 44), "o\n1\n " + root, "o\n1\n" + root + "\n", "o\n1\n" + root + "x",
        "o\n1\n" + root + "\nx\n"}) {
    EXPECT_FALSE(parse_checkpoint(text).ok()) << text;
  }
  EXPECT_TRUE(parse_checkpoint("o\n18446744073709551615\n" + root).ok());
  EXPECT_TRUE(parse_checkpoint("o\n0\n" + root).ok());
  EXPECT_FALSE(format_checkpoint({"", 1, {}, {}}).ok());
  EXPECT_FALSE(format_checkpoint({"a\nb", 1, {}, {}}).ok());
  EXPECT_FALSE(format_checkpoint({"a", 1, {}, {""}}).ok());
}

TEST(Checkpoint, OpensWithTheLogsKeyOnly) {
  const auto log = *SignerKey::generate("example.com/log");
  const auto other = *SignerKey::generate("example.com/other");
  const auto impostor = *SignerKey::generate("example.com/log");
  const Digest root = sha256("root");
  const std::string note = *sign_checkpoint(7, root, log);

  auto opened = open_checkpoint(note, std::vector{other.verifier(), log.verifier()});
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  EXPECT_EQ(*opened, (Checkpoint{"example.com/log", 7, root, {}}));
  EXPECT_EQ(open_checkpoint(note, std::vector{other.verifier()}).error().kind, ErrorKind::kRefuted);
  EXPECT_EQ(open_checkpoint(note, std::vector{impostor.verifier()}).error().kind, ErrorKind::kRefuted);

  // Another trusted key may not speak for this log.
  const auto foreign = format_note(*sign_note(*format_checkpoint({"example.com/log", 7, root, {}}), other));
  EXPECT_EQ(open_checkpoint(foreign, std::vector{other.verifier(), log.verifier()}).error().kind,
            ErrorKind::kRefuted);
}

}  // namespace
}  // namespace fieldprint::ledger
