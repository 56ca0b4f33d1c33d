#include "commit/envelope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "commit/fields.h"
#include "commit/receipt_sample.h"

namespace fieldprint::commit {
namespace {

// What a change of one field may be, for every type of field.
void alter(std::uint32_t& value, int) { ++value; }
void alter(std::uint64_t& value, int how) { value ^= std::uint64_t{1} << (how * 20 % 64); }
void alter(std::int32_t& value, int how) { value += how + 1; }
void alter(float& value, int how) {
  if (how == 0) value = std::nextafter(value, 0.0f);
  if (how == 1) value = value * 0.5f;
  if (how == 2) value = value * 0.25f;
}
void alter(Digest& value, int how) { value[static_cast<std::size_t>(how) * 15] ^= 0x10; }
void alter(core::FinishReason& value, int) { value = core::FinishReason::kStop; }
void alter(std::string& value, int how) {
  if (how == 0) value.push_back('x');
  if (how == 1) value.front() = static_cast<char>(value.front() ^ 1);
  if (how == 2) value.pop_back();
}
void alter(AnchorRecord& value, int how) {
  if (how == 1) {
    alter(value.id, how);
  } else {
    value.canonical.push_back('x');
  }
}
void alter(Input& value, int how) {
  if (how == 1) {
    alter(value.digest, how);
  } else {
    value.kind = value.kind == "memory" ? "tool_result" : "memory";
  }
}
void alter(core::BlockRecord& value, int how) {
  if (how == 0) value.segment = core::Segment::kContext;
  if (how == 1) ++value.index;
  if (how == 2) alter(value.digest, 0);
}
void alter(std::uint8_t& value, int how) { value = static_cast<std::uint8_t>(value ^ (1 << how)); }
template <class T>
void alter(std::vector<T>& value, int how) {
  if (how == 0 && value.size() > 1) {
    value.pop_back();
  } else if (how == 1) {
    alter(value.front(), how);
  } else {
    alter(value.back(), how);
  }
}

// Calls visit(path, member) for every field that is no map itself, field_checks included.
template <class T, class Visit>
void for_each_leaf_field(const std::string& outer, T& value, const Visit& visit) {
  detail::for_each_field(value, [&](const char* name, auto& member) {
    const std::string path = detail::path_of(outer, name);
    if constexpr (detail::HasFields<std::remove_cvref_t<decltype(member)>>) {
      for_each_leaf_field(path, member, visit);
    } else {
      visit(path, member);
    }
  });
}

std::string first_failure(const std::vector<Check>& checks) {
  for (const Check& check : checks) {
    if (!check.ok) return check.name;
  }
  return "";
}

std::vector<std::string> failures(const std::vector<Check>& checks) {
  std::vector<std::string> names;
  for (const Check& check : checks) {
    if (!check.ok) names.push_back(check.name);
  }
  return names;
}

TEST(Envelope, AnUntouchedReceiptPassesEveryCheck) {
  const Receipt receipt = sample::receipt(2);
  const std::vector<ledger::VerifierKey> trusted = {sample::signer().verifier()};
  for (const auto& checks : {check_envelope(receipt), check_envelope(receipt, trusted)}) {
    for (const Check& check : checks) EXPECT_TRUE(check.ok) << check.name << ": " << check.detail;
    EXPECT_GE(checks.size(), 8u);
  }
}

TEST(Envelope, EveryAlterationOfASingleFieldIsNamed) {
  const Receipt good = sample::receipt(2);
  std::vector<std::string> paths;
  {
    Receipt receipt = good;
    for_each_leaf_field("", receipt, [&](const std::string& path, auto&) { paths.push_back(path); });
  }
  ASSERT_EQ(paths.size(), field_names(good).size() + 1);
  for (const std::string& target : paths) {
    for (int how = 0; how < 3; ++how) {
      Receipt receipt = good;
      for_each_leaf_field("", receipt, [&](const std::string& path, auto& member) {
        if (path == target) alter(member, how);
      });
      ASSERT_NE(receipt, good) << target << " " << how;
      const auto checks = check_envelope(receipt);
      // A value out of its range is named to the element: "kv_blocks[0].tokens".
      EXPECT_TRUE(first_failure(checks).starts_with(target))
          << target << " " << how << " → " << first_failure(checks);
    }
  }
}

TEST(Envelope, EveryAlteredByteOfTheFileIsRefusedOrFails) {
  const Bytes good = *encode(sample::receipt(2, 8));
  for (std::size_t i = 0; i < good.size(); ++i) {
    Bytes bytes = good;
    bytes[i] ^= static_cast<std::uint8_t>(1 << (i % 8));
    auto receipt = decode(bytes);
    if (!receipt) continue;
    EXPECT_NE(first_failure(check_envelope(*receipt)), "") << "byte " << i;
  }
}

TEST(Envelope, ABodySealedAnewIsNotInTheLedger) {
  Receipt receipt = sample::receipt(2);
  receipt.body.output_tokens[0] ^= 1;
  receipt.body.output_digest = digest_of(receipt.body.output_tokens);
  ASSERT_TRUE(seal(receipt).ok());
  EXPECT_EQ(failures(check_envelope(receipt)), std::vector<std::string>{"inclusion_proof"});
}

TEST(Envelope, AForgedLedgerNeedsATrustedKey) {
  const auto forger = *ledger::SignerKey::generate("example.com/ledger");
  Receipt receipt = sample::receipt(2);
  receipt.body.output_tokens[0] ^= 1;
  receipt.body.output_digest = digest_of(receipt.body.output_tokens);
  receipt.body.anchors_at = 0;
  receipt.leaf_index = 0;
  receipt.tree_size = 1;
  receipt.inclusion_proof.clear();
  receipt.checkpoint = *ledger::sign_checkpoint(1, *commit_digest(receipt.body), forger);
  receipt.verifier_key = forger.verifier().text();
  ASSERT_TRUE(seal(receipt).ok());
  EXPECT_TRUE(failures(check_envelope(receipt)).empty());
  const std::vector<ledger::VerifierKey> trusted = {sample::signer().verifier()};
  EXPECT_EQ(failures(check_envelope(receipt, trusted)), std::vector<std::string>{"trusted_key"});
}

TEST(Envelope, StatementsThatContradictEachOtherFailEvenWhenSealed) {
  const auto failing = [](auto&& alter_receipt) {
    Receipt receipt = sample::receipt(2);
    alter_receipt(receipt);
    EXPECT_TRUE(seal(receipt).ok());
    return first_failure(check_envelope(receipt));
  };
  EXPECT_EQ(failing([](Receipt& r) { r.body.anchors[1].id[0] ^= 1; }), "anchors[1].id");
  EXPECT_EQ(failing([](Receipt& r) { r.body.output_digest[0] ^= 1; }), "output_digest");
  EXPECT_EQ(failing([](Receipt& r) { r.tree_size = 8; }), "tree_size");
  EXPECT_EQ(failing([](Receipt& r) { r.leaf_index = 4; }), "inclusion_proof");
  EXPECT_EQ(failing([](Receipt& r) { r.body.anchors_at = 6; }), "anchors_at");
  EXPECT_EQ(failing([](Receipt& r) { r.verifier_key = "none"; }), "verifier_key");
  EXPECT_EQ(failing([](Receipt& r) { r.checkpoint[0] = 'X'; }), "checkpoint");
}

TEST(Envelope, FieldNamesAreDistinct) {
  auto names = field_names(sample::receipt(1));
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
}

TEST(Envelope, SealRefusesValuesOutOfRange) {
  Receipt receipt = sample::receipt(2);
  receipt.body.sampling.top_k = -5;
  const Status sealed = seal(receipt);
  ASSERT_FALSE(sealed.ok());
  EXPECT_NE(sealed.error().message.find("sampling.top_k"), std::string::npos);
  EXPECT_EQ(first_failure(check_envelope(receipt)), "sampling.top_k");
}

}  // namespace
}  // namespace fieldprint::commit
