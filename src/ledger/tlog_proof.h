#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/sha256.h"
#include "ledger/checkpoint.h"
#include "ledger/cosignature.h"

/// Proofs that an entry is in a log, in one text that can be checked offline (c2sp.org/tlog-proof).
namespace fieldprint::ledger {

struct TlogProof {
  std::optional<std::vector<std::uint8_t>> extra;  ///< opaque, and authenticated by nothing
  std::uint64_t index = 0;
  std::vector<Digest> hashes;  ///< RFC 9162 inclusion proof, leaf to root
  std::string checkpoint;      ///< signed note
  bool operator==(const TlogProof&) const = default;
};

std::string format_tlog_proof(const TlogProof& proof);

/// The inverse of format_tlog_proof, strict. Nothing is verified.
Result<TlogProof> parse_tlog_proof(std::string_view text);

/// Whom a verifier trusts.
struct TrustPolicy {
  std::vector<VerifierKey> logs;       ///< Ed25519 keys named like the origins that are accepted
  std::vector<VerifierKey> witnesses;  ///< cosignature/v1 keys
  std::size_t quorum = 0;              ///< witnesses that must have cosigned
};

struct VerifiedProof {
  Checkpoint checkpoint;
  std::vector<Cosignature> cosignatures;
};

/// Opens a checkpoint signed by one of the policy's logs and cosigned by its quorum.
Result<VerifiedProof> open_witnessed(std::string_view note, const TrustPolicy& policy);

/// Refuted unless the log holds the leaf at proof.index, under a checkpoint that satisfies the policy.
Result<VerifiedProof> verify_tlog_proof(const TlogProof& proof, const Digest& leaf_hash,
                                        const TrustPolicy& policy);

}  // namespace fieldprint::ledger
