#include "anchor/record.h"

#include <gtest/gtest.h>

#include "anchor/anchor_testing.h"
#include "base/bounds.h"
#include "cbor/cbor.h"

namespace fieldprint::anchor {
namespace {

using testing::anchor_of;
using testing::key_of;
using testing::Office;
using testing::shared_office;
using testing::shared_policy;

std::vector<ActionRecord> one_of_each() {
  const Office office = shared_office();
  std::vector<ActionRecord> records;
  for (const Role role : {Role::kPropose, Role::kVerify, Role::kPromote, Role::kRevoke}) {
    records.push_back(office.record(role, anchor_of("be kind"), key_of("ann")));
  }
  return records;
}

TEST(Records, DecodeIsTheInverseOfEncode) {
  for (const ActionRecord& record : one_of_each()) {
    const Bytes leaf = encode(record);
    EXPECT_EQ(cbor::text_under("record", leaf), "anchor");
    auto decoded = decode_action(leaf);
    ASSERT_TRUE(decoded.ok()) << decoded.error().message;
    EXPECT_EQ(*decoded, record);
  }
  const PolicyRecord policy = Office().next(shared_policy(), {"alf", "ada"});
  const Bytes leaf = encode(policy);
  EXPECT_EQ(cbor::text_under("record", leaf), "policy");
  auto decoded = decode_policy(leaf);
  ASSERT_TRUE(decoded.ok()) << decoded.error().message;
  EXPECT_EQ(*decoded, policy);
  EXPECT_FALSE(decode_action(leaf).ok());
}

TEST(Records, OnlyTheFieldsAndTheEncodingOfTheFormatAreRead) {
  const Bytes leaf = encode(one_of_each()[1]);
  for (std::size_t size = 0; size < leaf.size(); ++size)
    EXPECT_FALSE(decode_action(std::span(leaf).first(size)).ok());
  Bytes longer = leaf;
  longer.push_back(0);
  EXPECT_FALSE(decode_action(longer).ok());
  // One more field: the count in the map's head, then key and value.
  Bytes extra = leaf;
  ++extra[0];
  extra.insert(extra.end(), {0x61, 'z', 0x00});
  EXPECT_FALSE(decode_action(extra).ok());
  // The head in a longer form.
  Bytes loose = leaf;
  loose[0] = static_cast<std::uint8_t>(leaf[0] & 0x1f);
  loose.insert(loose.begin(), 0xb8);
  EXPECT_FALSE(decode_action(loose).ok());
}

TEST(Records, TheReasonOfARevocationIsOneLine) {
  for (const std::string& reason :
       {std::string(), std::string("two\nlines"), std::string(1025, 'x'), std::string("\xff")}) {
    ActionRecord record = one_of_each()[3];
    record.reason = reason;
    EXPECT_FALSE(decode_action(encode(record)).ok()) << reason;
  }
}

TEST(Records, WhatIsSignedNamesItsKindLedgerAndPolicy) {
  const ActionRecord record = one_of_each()[1];
  const std::string message = signed_message(record);
  EXPECT_TRUE(message.starts_with("fieldprint-anchor-record 1\n"));
  EXPECT_NE(message.find(record.ledger), std::string::npos);
  EXPECT_NE(message.find(std::string(record.policy.begin(), record.policy.end())), std::string::npos);
  EXPECT_TRUE(signed_message(shared_policy()).starts_with("fieldprint-policy-record 1\n"));
  // No checkpoint reads like that: the name of a log has no space.
  EXPECT_FALSE(ledger::VerifierKey::make("fieldprint-anchor-record 1", ledger::PublicKey{}).ok());
}

TEST(Records, SignaturesOfAPolicyAreKeptInOrderOncePerKey) {
  Office office;
  PolicyRecord record = office.next(shared_policy(), {"amy", "ada", "amy", "alf"});
  ASSERT_EQ(record.signatures.size(), 3u);
  EXPECT_LT(record.signatures[0].key, record.signatures[1].key);
  EXPECT_LT(record.signatures[1].key, record.signatures[2].key);
}

TEST(Records, TheLargestAnchorsProposalFitsIntoALeaf) {
  Terms terms;
  for (int i = 0; i < 10; ++i) terms.tenants.push_back(std::to_string(i) + std::string(250, 't'));
  const Anchor anchor = anchor_of(std::string(bounds::kMaxAnchorBytes, 'x'), terms);
  const auto name = std::string(256, 'n');
  const auto key = *ledger::SignerKey::make(name, ledger::PrivateKey::from_seed({}));
  ActionRecord record = Registry(key.verifier()).draft(Role::kPropose, anchor.id(), 253402300799);
  record.canonical = anchor.canonical_bytes();
  record.canonical.resize(bounds::kMaxAnchorCanonicalBytes);
  sign(record, key);
  EXPECT_LE(encode(record).size(), static_cast<std::size_t>(bounds::kMaxLeafBytes));
}

}  // namespace
}  // namespace fieldprint::anchor
