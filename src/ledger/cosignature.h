#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "ledger/signed_note.h"

/// Witness cosignatures of checkpoints (c2sp.org/tlog-cosignature, cosignature/v1 with Ed25519). A signature
/// is eight bytes, big endian, of POSIX time and an Ed25519 signature over "cosignature/v1", that time and
/// the checkpoint's text.
namespace fieldprint::ledger {

struct Cosignature {
  VerifierKey witness;
  std::uint64_t time = 0;  ///< seconds since the epoch, as the witness states it
};

/// A witness's signature line for a checkpoint's text. `witness` names the public key of `key` as
/// KeyType::kCosignature; `time` is below 2^63. Whether the checkpoint deserves it is the witness's business.
NoteSignature cosign(std::string_view text, const VerifierKey& witness, const PrivateKey& key,
                     std::uint64_t time);

/// The time that a cosignature states; nothing if the bytes have not the form of one.
std::optional<std::uint64_t> cosignature_time(std::span<const std::uint8_t> signature);

bool verify_cosignature(std::string_view text, const PublicKey& key, std::span<const std::uint8_t> signature);

/// The cosignatures of a note by `witnesses`, one for each public key: two names for one key are one witness.
/// Refuted if a signature by one of them does not verify; what others signed is ignored.
Result<std::vector<Cosignature>> cosignatures_of(const SignedNote& note,
                                                 std::span<const VerifierKey> witnesses);

/// Reads what a witness hands back: a whole cosigned note, or signature lines alone, as the answer to
/// c2sp.org/tlog-witness's add-checkpoint has them, which are then taken to be about `last`.
Result<SignedNote> parse_cosigned(std::string_view answer, const SignedNote& last);

}  // namespace fieldprint::ledger
