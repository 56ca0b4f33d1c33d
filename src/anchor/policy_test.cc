#include "anchor/policy.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "anchor/anchor_testing.h"

namespace fieldprint::anchor {
namespace {

using testing::anchor_of;
using testing::key_of;
using testing::log_key;
using testing::Office;
using testing::shared_office;
using testing::shared_policy;

PolicyKey& key(Policy& policy, std::string_view name) {
  return *std::find_if(policy.keys.begin(), policy.keys.end(), [&](auto& k) { return k.key.name() == name; });
}

void drop(Policy& policy, std::string_view name) {
  std::erase_if(policy.keys, [&](auto& k) { return k.key.name() == name; });
}

std::uint32_t& threshold(Policy& policy, Role role) {
  return policy.thresholds[static_cast<std::size_t>(role)];
}

Policy single_operator() {
  Policy policy;
  policy.ledger = log_key().verifier().text();
  policy.single_operator = true;
  policy.keys = {{key_of("solo").verifier(), {kRoles.begin(), kRoles.end()}}};
  return policy;
}

std::string refusal(const Policy& policy) {
  const Status status = check(policy);
  return status.ok() ? "(accepted)" : status.error().message;
}

#define EXPECT_SAYS(text, word) EXPECT_NE((text).find(word), std::string::npos) << (text)

TEST(Policy, SoundOnesAreAccepted) {
  EXPECT_EQ(refusal(shared_policy()), "(accepted)");
  EXPECT_EQ(refusal(single_operator()), "(accepted)");
}

TEST(Policy, OneLostAdminKeyMustNotLockEverybodyOut) {
  Policy policy = shared_policy();
  threshold(policy, Role::kAdmin) = 3;
  EXPECT_SAYS(refusal(policy), "one admin key is lost");
  policy = shared_policy();
  drop(policy, "amy");
  EXPECT_SAYS(refusal(policy), "one admin key is lost");
  threshold(policy, Role::kAdmin) = 1;
  EXPECT_EQ(refusal(policy), "(accepted)");
  drop(policy, "alf");
  EXPECT_SAYS(refusal(policy), "single operator");
}

TEST(Policy, ASingleOperatorIsOneKeyThatSaysSo) {
  Policy policy = single_operator();
  policy.single_operator = false;
  EXPECT_SAYS(refusal(policy), "never be promoted");
  policy = single_operator();
  policy.keys[0].roles.pop_back();
  EXPECT_NE(refusal(policy), "(accepted)");
  policy = shared_policy();
  policy.single_operator = true;
  EXPECT_SAYS(refusal(policy), "one key with every role");
}

TEST(Policy, EveryRoleCanBeFilled) {
  for (const Role role : kRoles) {
    Policy policy = shared_policy();
    threshold(policy, role) = 0;
    EXPECT_NE(refusal(policy), "(accepted)");
    threshold(policy, role) = 9;
    EXPECT_NE(refusal(policy), "(accepted)");
  }
  Policy policy = shared_policy();
  threshold(policy, Role::kPromote) = 3;  // ann, pat and pia, but ann proposes
  EXPECT_SAYS(refusal(policy), "what ann proposes could never be promoted");
  key(policy, "ann").roles = {Role::kPropose};
  threshold(policy, Role::kPromote) = 2;
  EXPECT_EQ(refusal(policy), "(accepted)");
}

TEST(Policy, NobodyHoldsTwoVotes) {
  Policy policy = shared_policy();
  key(policy, "pia").key = *ledger::VerifierKey::make("pia", key_of("pat").verifier().key());
  EXPECT_SAYS(refusal(policy), "are the same key");
  policy = shared_policy();
  policy.keys.push_back(
      {*ledger::VerifierKey::make("vic", key_of("other").verifier().key()), {Role::kPromote}});
  std::sort(policy.keys.begin(), policy.keys.end(),
            [](auto& a, auto& b) { return a.key.text() < b.key.text(); });
  EXPECT_SAYS(refusal(policy), "two keys are named vic");
}

TEST(Policy, KeysThatProveNothingAreRefused) {
  Policy policy = shared_policy();
  key(policy, "pat").key = *ledger::VerifierKey::make("pat", ledger::PublicKey{1});
  EXPECT_SAYS(refusal(policy), "forge");
  policy = shared_policy();
  key(policy, "pat").key =
      *ledger::VerifierKey::make("pat", key_of("pat").verifier().key(), ledger::KeyType::kCosignature);
  EXPECT_SAYS(refusal(policy), "no signing key");
}

TEST(Policy, FormIsCanonical) {
  Policy policy = shared_policy();
  std::swap(policy.keys[0], policy.keys[1]);
  EXPECT_SAYS(refusal(policy), "not in order");
  policy = shared_policy();
  key(policy, "ann").roles = {Role::kPromote, Role::kPropose};
  EXPECT_SAYS(refusal(policy), "not in order");
  key(policy, "ann").roles = {Role::kPropose, Role::kPropose};
  EXPECT_SAYS(refusal(policy), "not in order");
  key(policy, "ann").roles = {};
  EXPECT_SAYS(refusal(policy), "no role");
  policy.keys.clear();
  EXPECT_SAYS(refusal(policy), "no key");
}

TEST(PolicyRecords, TheFirstIsSignedByItsOwnAdminsAndTheNextByThoseBefore) {
  Office office;
  EXPECT_FALSE(office.set(shared_policy(), {}).ok());
  EXPECT_FALSE(office.set(shared_policy(), {"ada"}).ok());
  EXPECT_FALSE(office.set(shared_policy(), {"ada", "ann"}).ok());
  EXPECT_FALSE(office.registry.policy());
  ASSERT_TRUE(office.set(shared_policy(), {"ada", "alf"}).ok());
  Policy taken = shared_policy();
  drop(taken, "ada");
  drop(taken, "alf");
  taken.keys.insert(taken.keys.begin(), {key_of("aaa").verifier(), {Role::kAdmin}});
  // Those who would come in cannot let themselves in.
  EXPECT_FALSE(office.set(taken, {"aaa", "amy"}).ok());
  EXPECT_FALSE(office.set(taken, {"amy"}).ok());
  EXPECT_EQ(office.registry.policy()->number, 1u);
  threshold(taken, Role::kAdmin) = 1;
  EXPECT_TRUE(office.set(taken, {"alf", "amy"}).ok());
  EXPECT_FALSE(office.set(taken, {"alf"}).ok());
  EXPECT_TRUE(office.set(taken, {"aaa"}).ok());
}

TEST(PolicyRecords, AForgedRepeatedOrMisplacedOneChangesNothing) {
  Office office = shared_office();
  Policy policy = shared_policy();
  drop(policy, "pia");
  policy.thresholds[static_cast<std::size_t>(Role::kPromote)] = 1;
  const PolicyRecord good = office.next(policy, {"ada", "amy"});
  std::vector<PolicyRecord> bad(6, good);
  bad[0].policy.number = 3;
  bad[1].policy.parent = {};
  bad[2].policy.time += 1;
  bad[3].signatures[1] = {bad[3].signatures[0].key, bad[3].signatures[0].signature};
  bad[4].signatures[0].signature[5] ^= 1;
  bad[5].policy.ledger = key_of("other.example/ledger").verifier().text();
  for (const PolicyRecord& record : bad) {
    EXPECT_FALSE(office.add(encode(record)).ok());
    EXPECT_EQ(office.registry.policy()->number, 1u);
  }
  ASSERT_TRUE(office.add(encode(good)).ok());
  EXPECT_FALSE(office.add(encode(good)).ok());
  EXPECT_EQ(office.registry.policy()->number, 2u);
  EXPECT_EQ(office.registry.policy_digest(), digest_of(good.policy));
}

TEST(PolicyRecords, ALostKeyIsReplacedByTheOthers) {
  Office office = shared_office();
  const Anchor anchor = anchor_of("x");
  office.promote(anchor);
  // Ada's and Vic's keys are lost: the other two admins name new ones.
  Policy policy = shared_policy();
  drop(policy, "ada");
  drop(policy, "vic");
  policy.keys.push_back({key_of("zoe").verifier(), {Role::kVerify, Role::kAdmin}});
  ASSERT_TRUE(office.set(policy, {"alf", "amy"}).ok());
  EXPECT_TRUE(office.admit(anchor).ok());
  const Anchor next = anchor_of("y");
  ASSERT_TRUE(office.act(Role::kPropose, next, "ann").ok());
  EXPECT_FALSE(office.act(Role::kVerify, next, "vic").ok());
  EXPECT_TRUE(office.act(Role::kVerify, next, "zoe").ok());
  EXPECT_FALSE(office.set(shared_policy(), {"ada", "alf"}).ok());
  EXPECT_TRUE(office.set(shared_policy(), {"zoe", "alf"}).ok());
}

TEST(PolicyRecords, ApprovalsThatDidNotSufficeAreForgottenWithTheirPolicy) {
  Office office = shared_office();
  const Anchor anchor = anchor_of("x");
  ASSERT_TRUE(office.act(Role::kPropose, anchor, "ann").ok());
  ASSERT_TRUE(office.act(Role::kVerify, anchor, "vic").ok());
  const Bytes pats = encode(office.record(Role::kPromote, anchor, key_of("pat")));
  const Bytes pias = encode(office.record(Role::kPromote, anchor, key_of("pia")));
  ASSERT_TRUE(office.add(pats).ok());
  ASSERT_TRUE(office.set(shared_policy(), {"ada", "alf"}).ok());
  EXPECT_FALSE(office.add(pias).ok());  // signed under the policy before
  ASSERT_TRUE(office.act(Role::kPromote, anchor, "pia").ok());
  EXPECT_EQ(office.state(anchor), AnchorState::kVerified);
  ASSERT_TRUE(office.act(Role::kPromote, anchor, "pat").ok());
  EXPECT_EQ(office.state(anchor), AnchorState::kPromoted);
}

TEST(PolicyRecords, WithoutOneTheLogsKeyDoesEverything) {
  Office office;
  const Anchor anchor = anchor_of("x");
  for (const Role role : {Role::kPropose, Role::kVerify, Role::kPromote}) {
    EXPECT_FALSE(office.act(role, anchor, "mallory").ok());
    ASSERT_TRUE(office.act(role, anchor, log_key()).ok());
  }
  EXPECT_TRUE(office.admit(anchor).ok());
  // The first policy takes that back.
  ASSERT_TRUE(office.set(shared_policy(), {"ada", "alf"}).ok());
  const Status admitted = office.admit(anchor);
  ASSERT_FALSE(admitted.ok());
  EXPECT_SAYS(admitted.error().message, "before this ledger had a policy");
  EXPECT_FALSE(office.registry.in_force(anchor.id(), 0).ok());
  EXPECT_EQ(office.registry.departures(), 1u);
  EXPECT_FALSE(office.act(Role::kPromote, anchor, log_key()).ok());
  ASSERT_TRUE(office.act(Role::kVerify, anchor, "vic").ok());
  ASSERT_TRUE(office.act(Role::kPromote, anchor, "ann").ok());
  ASSERT_TRUE(office.act(Role::kPromote, anchor, "pat").ok());
  EXPECT_TRUE(office.admit(anchor).ok());
}

TEST(PolicyRecords, ASingleOperatorMayPromoteWhatItProposed) {
  Office office;
  ASSERT_TRUE(office.set(single_operator(), {"solo"}).ok());
  const Anchor anchor = anchor_of("x");
  for (const Role role : {Role::kPropose, Role::kVerify, Role::kPromote}) {
    EXPECT_FALSE(office.act(role, anchor, log_key()).ok());
    ASSERT_TRUE(office.act(role, anchor, "solo").ok());
  }
  EXPECT_TRUE(office.admit(anchor).ok());
}

}  // namespace
}  // namespace fieldprint::anchor
