#pragma once

#include <cstdint>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"

/// Merkle proofs as JSON, in the shape of transparency-dev's and C2SP's test vectors: byte strings in base64.
namespace fieldprint::cli {

using ProofBytes = std::vector<std::uint8_t>;  ///< of any length: what is no hash proves nothing

struct InclusionProof {
  std::uint64_t leaf_index = 0;
  std::uint64_t tree_size = 0;
  ProofBytes root;
  ProofBytes leaf_hash;
  std::vector<ProofBytes> hashes;
};

struct ConsistencyProof {
  std::uint64_t old_size = 0;
  std::uint64_t new_size = 0;
  ProofBytes old_root;
  ProofBytes new_root;
  std::vector<ProofBytes> hashes;
};

using AnyProof = std::variant<InclusionProof, ConsistencyProof>;

/// Reads {"leafIdx","treeSize","root","leafHash","proof"} or {"size1","size2","root1","root2","proof"}.
/// Further keys are ignored, a null proof is an empty one. What is not JSON, lacks a key, has one twice, or
/// has another type than an unsigned integer of 64 bits, base64 or a list of base64, is the caller's error.
Result<AnyProof> parse_proof_file(std::string_view text);

/// Refuted unless the proof holds (RFC 9162 §2.1.3.2 and §2.1.4.2).
Status check_proof(const AnyProof& proof);

}  // namespace fieldprint::cli
