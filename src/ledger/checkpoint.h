#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/sha256.h"
#include "ledger/signed_note.h"

/// Checkpoints (c2sp.org/tlog-checkpoint): a signed note that states a log's size and root.
namespace fieldprint::ledger {

struct Checkpoint {
  std::string origin;  ///< names the log; non-empty, one line
  std::uint64_t size = 0;
  Digest root{};
  std::vector<std::string> extensions;  ///< further non-empty lines, opaque
  bool operator==(const Checkpoint&) const = default;
};

/// The text that is signed: origin, size, base64 root and extensions, a line each.
Result<std::string> format_checkpoint(const Checkpoint& checkpoint);

/// The inverse of format_checkpoint, strict: whatever it accepts formats to the same text.
Result<Checkpoint> parse_checkpoint(std::string_view text);

/// A signed checkpoint as text. The origin is the key's name, as the specification recommends.
Result<std::string> sign_checkpoint(std::uint64_t size, const Digest& root, const SignerKey& signer);

/// Opens a signed checkpoint: verified by at least one Ed25519 key of `known`, whose name is the checkpoint's
/// origin. Every other signature by a key of `known` must verify too; a witness does not speak for the log.
Result<Checkpoint> open_checkpoint(std::string_view note, std::span<const VerifierKey> known);

}  // namespace fieldprint::ledger
