#include "anchor/registry.h"

#include <gtest/gtest.h>

#include "anchor/anchor_testing.h"
#include "base/utc_time.h"

namespace fieldprint::anchor {
namespace {

using testing::anchor_of;
using testing::key_of;
using testing::log_key;
using testing::Office;
using testing::shared_office;
using testing::shared_policy;

// An error that says all of these words.
::testing::AssertionResult refused(const Status& status, std::initializer_list<std::string_view> words) {
  if (status.ok()) return ::testing::AssertionFailure() << "it was accepted";
  for (const std::string_view word : words) {
    if (status.error().message.find(word) == std::string::npos) {
      return ::testing::AssertionFailure() << "no \"" << word << "\" in: " << status.error().message;
    }
  }
  return ::testing::AssertionSuccess();
}

TEST(Registry, AnAnchorIsAdmittedOnlyWhileItIsPromoted) {
  Office office = shared_office();
  const Anchor anchor = anchor_of("be kind");
  EXPECT_TRUE(refused(office.admit(anchor), {"knows no anchor", "altered"}));
  ASSERT_TRUE(office.act(Role::kPropose, anchor, "ann").ok());
  EXPECT_TRUE(refused(office.admit(anchor), {"candidate", "anchor verify"}));
  ASSERT_TRUE(office.act(Role::kVerify, anchor, "vic").ok());
  EXPECT_TRUE(refused(office.admit(anchor), {"verified", "anchor promote"}));
  ASSERT_TRUE(office.act(Role::kPromote, anchor, "pat").ok());
  EXPECT_TRUE(refused(office.admit(anchor), {"verified"}));
  ASSERT_TRUE(office.act(Role::kPromote, anchor, "pia").ok());
  EXPECT_TRUE(office.admit(anchor).ok());
  EXPECT_EQ(office.registry.departures(), 0u);
  ASSERT_TRUE(office.act(Role::kRevoke, anchor, "rob").ok());
  EXPECT_TRUE(refused(office.admit(anchor), {"revoked", "poisoned"}));
  EXPECT_FALSE(office.registry.in_force(anchor.id(), 0).ok());
  EXPECT_EQ(office.registry.departures(), 1u);
  EXPECT_EQ(office.registry.find(anchor.id())->history.size(), 5u);
  EXPECT_TRUE(office.registry.refused().empty());
}

TEST(Registry, StepsOutOfOrderChangeNothing) {
  Office office = shared_office();
  const Anchor anchor = anchor_of("x");
  EXPECT_FALSE(office.act(Role::kVerify, anchor, "vic").ok());
  EXPECT_FALSE(office.act(Role::kRevoke, anchor, "rob").ok());
  ASSERT_TRUE(office.act(Role::kPropose, anchor, "ann").ok());
  EXPECT_TRUE(refused(office.act(Role::kPromote, anchor, "pat"), {"only a verified one"}));
  EXPECT_TRUE(refused(office.act(Role::kPropose, anchor, "ann"), {"before"}));
  ASSERT_TRUE(office.act(Role::kVerify, anchor, "vic").ok());
  EXPECT_FALSE(office.act(Role::kVerify, anchor, "vic").ok());
  EXPECT_EQ(office.state(anchor), AnchorState::kVerified);
  ASSERT_TRUE(office.act(Role::kRevoke, anchor, "rob").ok());
  for (const Role role : {Role::kVerify, Role::kPromote, Role::kRevoke}) {
    EXPECT_FALSE(
        office.act(role, anchor,
                   role == Role::kVerify    ? "vic"
                   : role == Role::kPromote ? "pat"
                                            : "rob")
            .ok());
  }
  EXPECT_EQ(office.state(anchor), AnchorState::kRevoked);
  EXPECT_EQ(office.registry.refused().size(), 8u);
}

TEST(Registry, WhoProposedCannotPromoteAndNobodyCountsTwice) {
  Office office = shared_office();
  const Anchor anchor = anchor_of("x");
  ASSERT_TRUE(office.act(Role::kPropose, anchor, "ann").ok());
  ASSERT_TRUE(office.act(Role::kVerify, anchor, "vic").ok());
  EXPECT_TRUE(refused(office.act(Role::kPromote, anchor, "ann"), {"ann proposed", "another"}));
  ASSERT_TRUE(office.act(Role::kPromote, anchor, "pat").ok());
  EXPECT_TRUE(refused(office.act(Role::kPromote, anchor, "pat"), {"already", "2 different keys"}));
  EXPECT_EQ(office.state(anchor), AnchorState::kVerified);
  // The proposer's key does not count under another name either.
  Policy renamed = shared_policy();
  const auto ann =
      std::find_if(renamed.keys.begin(), renamed.keys.end(), [](auto& k) { return k.key.name() == "ann"; });
  ann->key = *ledger::VerifierKey::make("anna", key_of("ann").verifier().key());
  ASSERT_TRUE(office.set(renamed, {"ada", "amy"}).ok());
  const auto anna = *ledger::SignerKey::make("anna", [] {
    ledger::Seed seed{'a', 'n', 'n'};
    return ledger::PrivateKey::from_seed(seed);
  }());
  EXPECT_TRUE(refused(office.act(Role::kPromote, anchor, anna), {"anna proposed"}));
}

TEST(Registry, AKeyDoesOnlyWhatThePolicyLetsItDo) {
  Office office = shared_office();
  const Anchor anchor = anchor_of("x");
  for (const std::string_view name : {"vic", "pat", "ada", "mallory", "example.com/ledger"}) {
    EXPECT_TRUE(refused(office.act(Role::kPropose, anchor, name), {"does not let", name})) << name;
  }
  ASSERT_TRUE(office.act(Role::kPropose, anchor, "ann").ok());
  EXPECT_FALSE(office.act(Role::kVerify, anchor, "ann").ok());
  EXPECT_FALSE(office.act(Role::kRevoke, anchor, "ann").ok());
  EXPECT_EQ(office.state(anchor), AnchorState::kCandidate);
}

TEST(Registry, AForgedOrAlteredRecordIsRefusedWhateverFieldWasTouched) {
  Office office = shared_office();
  const Anchor anchor = anchor_of("x");
  ASSERT_TRUE(office.act(Role::kPropose, anchor, "ann").ok());
  const ActionRecord good = office.record(Role::kRevoke, anchor, key_of("rob"));
  std::vector<ActionRecord> forged(6, good);
  forged[0].reason = "none";
  forged[1].time += 1;
  forged[2].anchor[0] ^= 1;
  forged[3].signature[0] ^= 1;
  forged[4].signature[63] ^= 0x20;
  forged[5].signature.clear();
  for (const ActionRecord& record : forged)
    EXPECT_TRUE(refused(office.add(encode(record)), {"does not verify"}));
  // Every byte of the leaf.
  const Bytes leaf = encode(good);
  for (std::size_t i = 0; i < leaf.size(); ++i) {
    Bytes altered = leaf;
    altered[i] ^= 1;
    Registry copy = office.registry;
    (void)copy.apply(copy.size(), altered);
    ASSERT_EQ(copy.find(anchor.id())->state, AnchorState::kCandidate) << i;
  }
  EXPECT_TRUE(office.add(leaf).ok());
}

TEST(Registry, BytesThatAreNotTheAnchorNamedAreRefused) {
  Office office = shared_office();
  ActionRecord record = office.record(Role::kPropose, anchor_of("be kind"), key_of("ann"));
  record.canonical = anchor_of("be cruel").canonical_bytes();
  sign(record, key_of("ann"));
  EXPECT_TRUE(refused(office.add(encode(record)), {"not those of the anchor"}));
  record.canonical = {'x'};
  sign(record, key_of("ann"));
  EXPECT_TRUE(refused(office.add(encode(record)), {"malformed anchor"}));
}

TEST(Registry, ReplaysInTheSameLedgerChangeNothing) {
  Office office = shared_office();
  const Anchor anchor = anchor_of("x");
  office.promote(anchor);
  const Anchor other = anchor_of("y");
  office.promote(other);
  ASSERT_TRUE(office.act(Role::kRevoke, other, "rob").ok());
  const std::vector<Bytes> leaves = office.leaves;
  for (const Bytes& leaf : leaves) {
    EXPECT_FALSE(office.add(leaf).ok());
    EXPECT_EQ(office.state(anchor), AnchorState::kPromoted);
    EXPECT_EQ(office.state(other), AnchorState::kRevoked);
  }
  EXPECT_EQ(office.registry.policy()->number, 1u);
}

TEST(Registry, RecordsOfAnotherLedgerMeanNothing) {
  Office office = shared_office();
  office.promote(anchor_of("x"));
  Registry other(key_of("other.example/ledger").verifier());
  for (const Bytes& leaf : office.leaves) {
    EXPECT_TRUE(refused(other.apply(other.size(), leaf), {"made for the ledger of example.com/ledger"}));
  }
  EXPECT_TRUE(other.entries().empty());
  EXPECT_FALSE(other.policy());
  // The same name with another key is another ledger.
  const auto key =
      *ledger::SignerKey::make("example.com/ledger", ledger::PrivateKey::from_seed(ledger::Seed{9}));
  Registry namesake(key.verifier());
  EXPECT_FALSE(namesake.apply(0, office.leaves[0]).ok());
}

TEST(Registry, EverybodyWhoHasTheLeavesComesToTheSameState) {
  Office office = shared_office();
  office.promote(anchor_of("x"));
  ASSERT_TRUE(office.act(Role::kRevoke, anchor_of("x"), "rob").ok());
  ASSERT_FALSE(office.act(Role::kRevoke, anchor_of("x"), "rob").ok());
  Registry again(log_key().verifier());
  for (const Bytes& leaf : office.leaves) (void)again.apply(again.size(), leaf);
  EXPECT_EQ(again.size(), office.registry.size());
  EXPECT_EQ(again.find(anchor_of("x").id())->state, AnchorState::kRevoked);
  EXPECT_EQ(again.refused().size(), 1u);
  EXPECT_EQ(again.refused()[0].index, office.leaves.size() - 1);
}

TEST(Registry, LeavesThatAreNoneOfItsRecordsArePassedOver) {
  Office office;
  for (const Bytes& leaf : {Bytes{}, Bytes{0xa0}, Bytes{0xff}, Bytes(1000, 0x81), Bytes{'x'}}) {
    EXPECT_TRUE(office.add(leaf).ok());
  }
  EXPECT_EQ(office.registry.size(), 5u);
}

TEST(Registry, JudgeSaysWhatApplyWouldSayAndChangesNothing) {
  Office office = shared_office();
  const Anchor anchor = anchor_of("x");
  const Bytes leaf = encode(office.record(Role::kPropose, anchor, key_of("ann")));
  EXPECT_TRUE(office.registry.judge(leaf).ok());
  EXPECT_EQ(office.registry.find(anchor.id()), nullptr);
  ASSERT_TRUE(office.add(leaf).ok());
  EXPECT_FALSE(office.registry.judge(leaf).ok());
}

TEST(Registry, ATenantsAnchorIsForThatTenantAlone) {
  Office office = shared_office();
  Terms terms;
  terms.tenants = {"acme", "beta"};
  const Anchor anchor = anchor_of("x", terms);
  office.promote(anchor);
  EXPECT_TRUE(office.admit(anchor, {.tenant = "acme"}).ok());
  EXPECT_TRUE(office.admit(anchor, {.tenant = "beta"}).ok());
  EXPECT_TRUE(refused(office.admit(anchor, {.tenant = "acm"}), {"not for the tenant acm"}));
  EXPECT_TRUE(refused(office.admit(anchor), {"--tenant"}));
}

TEST(Registry, AModelsAnchorIsForThatModelAlone) {
  Office office = shared_office();
  Terms terms;
  terms.models = {Digest{7}};
  const Anchor anchor = anchor_of("x", terms);
  office.promote(anchor);
  EXPECT_TRUE(office.admit(anchor, {.model_digest = Digest{7}}).ok());
  EXPECT_TRUE(refused(office.admit(anchor, {.model_digest = Digest{8}}), {"not for the model"}));
}

TEST(Registry, AnAnchorIsInForceFromItsFirstSecondToItsLast) {
  Office office = shared_office();
  Terms terms;
  terms.not_before = 5000;
  terms.not_after = 6000;
  const Anchor anchor = anchor_of("x", terms);
  office.promote(anchor);
  EXPECT_TRUE(refused(office.admit(anchor, {.time = 4999}), {"not valid before 1970-01-01T01:23:20Z"}));
  EXPECT_TRUE(office.admit(anchor, {.time = 5000}).ok());
  EXPECT_TRUE(office.admit(anchor, {.time = 6000}).ok());
  EXPECT_TRUE(office.registry.in_force(anchor.id(), 6000).ok());
  EXPECT_TRUE(refused(office.admit(anchor, {.time = 6001}), {"expired at 1970-01-01T01:40:00Z"}));
  EXPECT_TRUE(refused(office.registry.in_force(anchor.id(), 6001), {"expired"}));
}

TEST(Registry, AClockThatRunsBackRevivesNothing) {
  Office office = shared_office();
  Terms terms;
  terms.not_after = 6000;
  const Anchor anchor = anchor_of("x", terms);
  office.promote(anchor);
  EXPECT_TRUE(office.admit(anchor, {.time = 100}).ok());
  office.now = 7000;
  office.promote(anchor_of("later"));
  EXPECT_TRUE(refused(office.admit(anchor, {.time = 100}), {"expired"}));
  EXPECT_FALSE(office.registry.in_force(anchor.id(), 100).ok());
  // Nor do records by a clock that runs behind, and a refused record's time counts for nothing.
  EXPECT_EQ(office.registry.draft(Role::kVerify, anchor.id(), 50).time, 7000);
  ActionRecord forged = office.record(Role::kRevoke, anchor, key_of("mallory"));
  forged.time = 9000;
  ASSERT_FALSE(office.add(encode(forged)).ok());
  EXPECT_EQ(office.registry.latest_time(), 7000);
}

TEST(Registry, OnlyDecisionsAndPoliciesMoveTimeOn) {
  Office office = shared_office();
  Terms terms;
  terms.not_after = 6000;
  const Anchor dated = anchor_of("x", terms);
  office.promote(dated);
  const Anchor other = anchor_of("other");
  office.now = 9000;
  ASSERT_TRUE(office.act(Role::kPropose, other, "ann").ok());
  ASSERT_TRUE(office.act(Role::kVerify, other, "vic").ok());
  ASSERT_TRUE(office.act(Role::kPromote, other, "pat").ok());
  EXPECT_EQ(office.registry.latest_time(), 1000);
  EXPECT_TRUE(office.admit(dated, {.time = 6000}).ok());
  ASSERT_TRUE(office.act(Role::kPromote, other, "pia").ok());
  EXPECT_EQ(office.registry.latest_time(), 9000);
  EXPECT_TRUE(refused(office.admit(dated, {.time = 6000}), {"expired"}));
  office.now = 9500;
  ASSERT_TRUE(office.act(Role::kRevoke, other, "rob").ok());
  EXPECT_EQ(office.registry.latest_time(), 9500);
  office.now = 9900;
  ASSERT_TRUE(office.set(shared_policy(), {"ada", "alf"}).ok());
  EXPECT_EQ(office.registry.latest_time(), 9900);
}

TEST(Registry, NoRecordMakesAnAnchorValidEarly) {
  Office office = shared_office();
  Terms terms;
  terms.not_before = 5000;
  const Anchor anchor = anchor_of("x", terms);
  office.now = 8000;
  office.promote(anchor);
  ASSERT_EQ(office.registry.latest_time(), 8000);
  EXPECT_TRUE(refused(office.admit(anchor, {.time = 4999}), {"not valid before"}));
  EXPECT_TRUE(office.admit(anchor, {.time = 5000}).ok());
}

TEST(Registry, ASuccessorTakesThePlaceOfAllBeforeItWhenItIsPromoted) {
  Office office = shared_office();
  const Anchor first = anchor_of("v1");
  office.promote(first);
  Terms second_terms;
  second_terms.supersedes = {first.id()};
  const Anchor second = anchor_of("v2", second_terms);  // a draft that is never promoted
  ASSERT_TRUE(office.act(Role::kPropose, second, "ann").ok());
  Terms third_terms;
  third_terms.supersedes = {second.id()};
  const Anchor third = anchor_of("v3", third_terms);
  ASSERT_TRUE(office.act(Role::kPropose, third, "ann").ok());
  EXPECT_TRUE(office.admit(first).ok());
  ASSERT_TRUE(office.act(Role::kVerify, third, "vic").ok());
  ASSERT_TRUE(office.act(Role::kPromote, third, "pat").ok());
  ASSERT_TRUE(office.act(Role::kPromote, third, "pia").ok());
  EXPECT_TRUE(refused(office.admit(first), {"superseded by", to_hex(third.id())}));
  EXPECT_FALSE(office.act(Role::kVerify, second, "vic").ok());
  EXPECT_TRUE(office.admit(third).ok());
  // Whoever uses it may go on until it is revoked.
  EXPECT_TRUE(office.registry.in_force(first.id(), 0).ok());
  EXPECT_EQ(office.registry.departures(), 0u);
  ASSERT_TRUE(office.act(Role::kRevoke, first, "rob").ok());
  EXPECT_FALSE(office.registry.in_force(first.id(), 0).ok());
  EXPECT_EQ(office.registry.departures(), 1u);
  // Revoking the successor brings nothing back.
  ASSERT_TRUE(office.act(Role::kRevoke, third, "rob").ok());
  EXPECT_FALSE(office.admit(second).ok());
}

TEST(Registry, NobodySupersedesWhatTheLedgerDoesNotKnow) {
  Office office = shared_office();
  Terms terms;
  terms.supersedes = {Digest{1}};
  EXPECT_TRUE(refused(office.act(Role::kPropose, anchor_of("x", terms), "ann"), {"does not know"}));
}

TEST(Registry, ResolvesPrefixesThatAreLongAndClearEnough) {
  Office office = shared_office();
  const Anchor anchor = anchor_of("x");
  ASSERT_TRUE(office.act(Role::kPropose, anchor, "ann").ok());
  const std::string id = to_hex(anchor.id());
  EXPECT_EQ(*office.registry.resolve(id), anchor.id());
  EXPECT_EQ(*office.registry.resolve(id.substr(0, 8)), anchor.id());
  for (const std::string& bad :
       {id.substr(0, 7), id + "0", std::string("00000000"), std::string("policy.txt"), std::string()}) {
    EXPECT_FALSE(office.registry.resolve(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace fieldprint::anchor
