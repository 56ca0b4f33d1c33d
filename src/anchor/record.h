#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "anchor/policy.h"
#include "base/result.h"
#include "base/sha256.h"
#include "ledger/signed_note.h"

/// What the ledger holds about anchors: deterministic CBOR maps with a key "record". Each names the ledger
/// that it was made for and the policy under which it was signed, and its signatures cover all its other
/// fields.
namespace fieldprint::anchor {

using Bytes = std::vector<std::uint8_t>;

/// "record": "anchor": what one key says of one anchor.
struct ActionRecord {
  Role action = Role::kPropose;  ///< not admin
  Digest anchor{};
  Bytes canonical;        ///< of a proposal: the anchor's canonical bytes; empty otherwise
  std::string reason;     ///< of a revocation: one line; empty otherwise
  std::int64_t time = 0;  ///< seconds since 1970, UTC
  Digest policy{};        ///< digest of the policy in force; zeros: none, the log's key acts
  std::string ledger;     ///< verifier key of the log
  std::string key;        ///< verifier key of who signs
  Bytes signature;        ///< Ed25519, of signed_message
  bool operator==(const ActionRecord&) const = default;
};

struct KeySignature {
  std::string key;  ///< verifier key
  Bytes signature;
  bool operator==(const KeySignature&) const = default;
};

/// "record": "policy": a policy with the signatures of admins, in the order of their keys.
struct PolicyRecord {
  Policy policy;
  std::vector<KeySignature> signatures;
  bool operator==(const PolicyRecord&) const = default;
};

/// "fieldprint-anchor-record 1\n" or "fieldprint-policy-record 1\n", and the record without its signatures.
std::string signed_message(const ActionRecord& record);
std::string signed_message(const Policy& policy);
/// SHA-256 of its signed message: how records and the next policy name a policy.
Digest digest_of(const Policy& policy);

void sign(ActionRecord& record, const ledger::SignerKey& signer);
void sign(PolicyRecord& record, const ledger::SignerKey& signer);

Bytes encode(const ActionRecord& record);
Bytes encode(const PolicyRecord& record);
/// Strict inverses: exactly the known fields in the deterministic encoding. Whether signatures verify and the
/// policy is sound is another question.
Result<ActionRecord> decode_action(std::span<const std::uint8_t> leaf);
Result<PolicyRecord> decode_policy(std::span<const std::uint8_t> leaf);
/// The time that a record states; nothing of leaves that are none.
std::optional<std::int64_t> time_of(std::span<const std::uint8_t> leaf);

}  // namespace fieldprint::anchor
