#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "base/result.h"
#include "engine/authority.h"
#include "ledger/signed_note.h"
#include "store/data_folder.h"
#include "store/signed_log.h"

namespace fieldprint::cli {

/// Adds --data and --database as the anchor commands take them.
void add_office_options(CLI::App& command, store::DataFolder& place);

/// A ledger that is open for records about anchors, and who says what they mean.
struct AnchorOffice {
  std::unique_ptr<store::SignedLog> log;
  std::unique_ptr<engine::Authority> authority;

  /// Opens what is there; with `create` begins a ledger where there is none.
  static Result<AnchorOffice> open(const store::DataFolder& place, bool create);
  /// The key in the file, or the log's own where no file is named.
  Result<ledger::SignerKey> signer(const std::string& key_file) const;
};

/// What the ledger says of its anchors, read without changing it.
Result<anchor::Registry> read_registry(const store::DataFolder& place);

}  // namespace fieldprint::cli
