#include "ledger/cosignature.h"

#include <gtest/gtest.h>

#include "ledger/checkpoint.h"
#include "ledger/tlog_proof.h"

namespace fieldprint::ledger {
namespace {

struct Witness {
  PrivateKey key;
  VerifierKey verifier;
};

Witness witness(std::uint8_t seed, const std::string& name) {
  PrivateKey key = PrivateKey::from_seed(Seed{seed});
  auto verifier = VerifierKey::make(name, key.public_key(), KeyType::kCosignature);
  return {std::move(key), std::move(*verifier)};
}

const SignerKey& log() {
  static const SignerKey key = *SignerKey::make("example.com/log", PrivateKey::from_seed(Seed{9}));
  return key;
}

SignedNote checkpoint_note() { return *parse_note(*sign_checkpoint(7, sha256("root"), log())); }

SignedNote cosigned(std::initializer_list<const Witness*> witnesses) {
  SignedNote note = checkpoint_note();
  std::uint64_t time = 1679315147;
  for (const Witness* w : witnesses)
    note.signatures.push_back(cosign(note.text, w->verifier, w->key, time++));
  return note;
}

TEST(Cosignature, SignsTheMessageOfTheSpecification) {
  // The header and time lines before the note's text, as c2sp.org/tlog-cosignature shows them.
  const Witness w = witness(1, "witness.example.com/w1");
  const std::string text =
      "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
  const NoteSignature line = cosign(text, w.verifier, w.key, 1679315147);
  ASSERT_EQ(line.bytes.size(), 72u);
  EXPECT_EQ(to_hex(std::span(line.bytes).first(8)), "00000000641850cb");
  EXPECT_EQ(cosignature_time(line.bytes), 1679315147u);
  const std::string message = "cosignature/v1\ntime 1679315147\n" + text;
  EXPECT_TRUE(verify_signature(w.key.public_key(),
                               {reinterpret_cast<const std::uint8_t*>(message.data()), message.size()},
                               std::span(line.bytes).subspan(8)));
  // Key ID: SHA-256(name || "\n" || 0x04 || key).
  const Digest hash = Sha256().update(w.verifier.name()).update("\n\x04").update(w.key.public_key()).finish();
  EXPECT_EQ(fmt::format("{:08x}", line.key_id), to_hex(std::span(hash).first(4)));
}

TEST(Cosignature, VerifierKeysRoundTripAndDifferFromTheLogs) {
  const Witness w = witness(1, "w");
  const auto as_log = *VerifierKey::make("w", w.key.public_key());
  EXPECT_NE(w.verifier.id(), as_log.id());
  EXPECT_EQ(*VerifierKey::parse(w.verifier.text()), w.verifier);
  EXPECT_EQ(VerifierKey::parse(w.verifier.text())->type(), KeyType::kCosignature);
}

TEST(Cosignature, CountsEachWitnessOnceAndIgnoresStrangers) {
  const Witness a = witness(1, "a");
  const Witness again = witness(1, "another-name");
  const Witness b = witness(2, "b");
  const SignedNote note = cosigned({&a, &again, &b});
  const auto found = cosignatures_of(note, std::vector{a.verifier, again.verifier});
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->size(), 1u);
  EXPECT_EQ(found->front().time, 1679315147u);
  EXPECT_EQ(cosignatures_of(note, std::vector{a.verifier, b.verifier})->size(), 2u);
  EXPECT_TRUE(cosignatures_of(note, {})->empty());
  EXPECT_TRUE(cosignatures_of(note, std::vector{log().verifier()})->empty());
}

TEST(Cosignature, AnyAlterationIsRefuted) {
  const Witness a = witness(1, "a");
  const SignedNote good = cosigned({&a});
  for (std::size_t i = 0; i < 72; ++i) {
    SignedNote bad = good;
    bad.signatures[1].bytes[i] ^= 1;
    EXPECT_EQ(cosignatures_of(bad, {&a.verifier, 1}).error().kind, ErrorKind::kRefuted) << i;
  }
  SignedNote late = good;
  late.signatures[1].bytes[0] |= 0x80;
  EXPECT_FALSE(cosignature_time(late.signatures[1].bytes).has_value());
  SignedNote cut = good;
  cut.signatures[1].bytes.pop_back();
  EXPECT_FALSE(cosignatures_of(cut, {&a.verifier, 1}).ok());
  SignedNote other = good;
  other.text += "extension\n";
  EXPECT_FALSE(cosignatures_of(other, {&a.verifier, 1}).ok());
}

TEST(Cosignature, AWitnessDoesNotSpeakForTheLog) {
  const Witness named_like_the_log = witness(3, "example.com/log");
  SignedNote note = checkpoint_note();
  note.signatures = {cosign(note.text, named_like_the_log.verifier, named_like_the_log.key, 5)};
  EXPECT_TRUE(open_note(format_note(note), {&named_like_the_log.verifier, 1}).ok());
  EXPECT_EQ(open_checkpoint(format_note(note), {&named_like_the_log.verifier, 1}).error().kind,
            ErrorKind::kRefuted);
}

TEST(Cosignature, ReadsWholeNotesAndLinesAlone) {
  const Witness a = witness(1, "a");
  const SignedNote note = cosigned({&a});
  const SignedNote last = checkpoint_note();
  const std::string whole = format_note(note);
  EXPECT_EQ(*parse_cosigned(whole, last), note);
  SignedNote lines = note;
  lines.signatures.erase(lines.signatures.begin());
  const std::string answer = format_note(lines).substr(lines.text.size() + 1);
  EXPECT_EQ(*parse_cosigned(answer, last), lines);
  EXPECT_FALSE(parse_cosigned("nonsense", last).ok());
  const auto merged = merge_signatures(last, lines);
  ASSERT_TRUE(merged.ok());
  EXPECT_EQ(*merged, note);
  EXPECT_EQ(*merge_signatures(note, lines), note);
  SignedNote newer = lines;
  newer.signatures = {cosign(note.text, a.verifier, a.key, 2000000000)};
  EXPECT_EQ(merge_signatures(note, newer)->signatures.size(), 2u);
  EXPECT_EQ(cosignature_time(merge_signatures(note, newer)->signatures[1].bytes), 2000000000u);
  newer.text += "x\n";
  EXPECT_FALSE(merge_signatures(note, newer).ok());
}

TEST(Cosignature, AQuorumIsAskedFor) {
  const Witness a = witness(1, "a");
  const Witness b = witness(2, "b");
  const std::string note = format_note(cosigned({&a}));
  TrustPolicy policy = {{log().verifier()}, {a.verifier, b.verifier}, 1};
  EXPECT_TRUE(open_witnessed(note, policy).ok());
  policy.quorum = 2;
  EXPECT_NE(open_witnessed(note, policy).error().message.find("1 of the 2 witnesses"), std::string::npos);
}

}  // namespace
}  // namespace fieldprint::ledger
