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

/// The keys in files of one verifier key each.
Result<std::vector<ledger::VerifierKey>> read_verifier_keys(const std::vector<std::string>& paths);

/// A file's text, such as a checkpoint's.
Result<std::string> read_text(const std::string& path, std::int64_t max_bytes);

}  // namespace fieldprint::cli
