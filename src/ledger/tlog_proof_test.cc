#include "ledger/tlog_proof.h"

#include <gtest/gtest.h>

#include "ledger/growth.h"

namespace fieldprint::ledger {
namespace {

Digest leaf(std::uint64_t i) { return leaf_hash(std::vector<std::uint8_t>{static_cast<std::uint8_t>(i)}); }

const SignerKey& log() {
  static const SignerKey key = *SignerKey::make("example.com/log", PrivateKey::from_seed(Seed{9}));
  return key;
}

TlogProof proof_of(std::uint64_t index, std::uint64_t size) {
  Growth growth{CompactTree()};
  for (std::uint64_t i = 0; i < size; ++i) growth.append(leaf(i));
  return {{}, index, growth.inclusion_proof(index), *sign_checkpoint(size, growth.root(), log())};
}

TEST(TlogProof, RoundTripsAndVerifies) {
  for (const std::uint64_t size : {1, 2, 7, 8, 100}) {
    for (std::uint64_t index = 0; index < size; ++index) {
      TlogProof proof = proof_of(index, size);
      if (index % 3 == 1) proof.extra = std::vector<std::uint8_t>(index % 7, 5);
      const std::string text = format_tlog_proof(proof);
      EXPECT_TRUE(text.starts_with("c2sp.org/tlog-proof@v1\n"));
      auto parsed = parse_tlog_proof(text);
      ASSERT_TRUE(parsed.ok()) << parsed.error().message;
      EXPECT_EQ(*parsed, proof);
      const TrustPolicy policy = {{log().verifier()}, {}, 0};
      const auto verified = verify_tlog_proof(*parsed, leaf(index), policy);
      ASSERT_TRUE(verified.ok()) << verified.error().message;
      EXPECT_EQ(verified->checkpoint.size, size);
      EXPECT_EQ(verify_tlog_proof(*parsed, leaf(index + 1), policy).error().kind, ErrorKind::kRefuted);
      EXPECT_EQ(verify_tlog_proof(*parsed, leaf(index), {}).error().kind, ErrorKind::kRefuted);
    }
  }
}

TEST(TlogProof, RefusesEveryOtherForm) {
  const std::string good = format_tlog_proof(proof_of(2, 3));
  ASSERT_TRUE(parse_tlog_proof(good).ok());
  const auto with = [&](std::string_view from, std::string_view to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    return text;
  };
  for (const std::string& text :
       {std::string(), std::string("c2sp.org/tlog-proof@v1\n"), with("@v1", "@v2"),
        with("index 2", "index 02"), with("index 2", "index -2"), with("index 2", "index"),
        with("index 2", "index 18446744073709551616"), with("index 2\n", ""),
        with("index 2\n", "extra !\nindex 2\n"), with("index 2\n", "index 2\nAAAA\n"), with("\n\n", "\n"),
        with("example.com/log\n3", "example.com/log\n03"), good + "x", good.substr(0, good.size() - 1)}) {
    const auto parsed = parse_tlog_proof(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_EQ(parsed.error().kind, ErrorKind::kCaller);
  }
}

TEST(TlogProof, OnlyTheLogsOwnKeySpeaksForIt) {
  const TlogProof proof = proof_of(2, 3);
  const auto stranger = *SignerKey::generate("example.com/log");
  EXPECT_FALSE(verify_tlog_proof(proof, leaf(2), {{stranger.verifier()}, {}, 0}).ok());
  EXPECT_TRUE(verify_tlog_proof(proof, leaf(2), {{stranger.verifier(), log().verifier()}, {}, 0}).ok());
}

}  // namespace
}  // namespace fieldprint::ledger
