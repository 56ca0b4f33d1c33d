#pragma once

#include <string>

#include "base/result.h"
#include "ledger/signed_note.h"

namespace fieldprint::ledger {

/// Reads a signing key from a file of one line. Refuses a file that others than its owner may read or write.
Result<SignerKey> load_key_file(const std::string& path);

/// Makes a key and stores it at `path` with mode 0600. Refuses a path where something is.
Result<SignerKey> create_key_file(const std::string& path, const std::string& name);

/// Reads the key at `path`, or makes one named `name` and stores it there with mode 0600. Two processes that
/// do so at once end with the same key. A stored key of another name is the caller's error.
Result<SignerKey> load_or_create_key_file(const std::string& path, const std::string& name);

}  // namespace fieldprint::ledger
