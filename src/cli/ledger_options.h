#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "ledger/signed_note.h"
#include "store/data_folder.h"

namespace fieldprint::cli {

/// Adds --data and --database.
void add_place_options(CLI::App& command, store::DataFolder& place);

/// Opens a ledger that is there, without changing it.
Result<std::unique_ptr<store::LedgerStore>> open_place(const store::DataFolder& place, store::Access access);

/// Opens a ledger that is there, with its key, to add to it.
Result<std::unique_ptr<store::SignedLog>> open_for_signing(const store::DataFolder& place);

/// The verifier key of the log in --data.
Result<ledger::VerifierKey> read_log_key(const store::DataFolder& place);

/// Makes a folder, and those above it, unless it is there or the path is empty.
Status ensure_folder(const std::string& path);

/// The keys in files of one verifier key each.
Result<std::vector<ledger::VerifierKey>> read_verifier_keys(const std::vector<std::string>& paths);

/// A file's text, such as a checkpoint's.
Result<std::string> read_text(const std::string& path, std::int64_t max_bytes);

}  // namespace fieldprint::cli
