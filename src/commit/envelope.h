#pragma once

#include <span>
#include <string>
#include <vector>

#include "commit/receipt.h"
#include "ledger/signed_note.h"

namespace fieldprint::commit {

/// One thing that was checked. `name` is a field ("sampling.top_k") or what fields say together
/// ("inclusion_proof", "checkpoint"); `detail` says in a sentence what was found.
struct Check {
  std::string name;
  bool ok = false;
  std::string detail;
};

/// Names of the fields that field_checks covers, in its order.
std::vector<std::string> field_names(const Receipt& receipt);

/// Makes the field checks. Call it when all other fields are set. A value out of range is the caller's error.
Status seal(Receipt& receipt);

/// Checks all that can be checked without the model: that no field was altered since seal(), that the anchors
/// and the output have the digests stated, that the ledger holds the body under the checkpoint, and that the
/// checkpoint is signed by the receipt's key, which must be one of `trusted` unless that is empty. Failed
/// field names come first. Replaying the body against the model is left to the verifier.
std::vector<Check> check_envelope(const Receipt& receipt, std::span<const ledger::VerifierKey> trusted = {});

}  // namespace fieldprint::commit
