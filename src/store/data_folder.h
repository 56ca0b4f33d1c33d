#pragma once

#include <memory>
#include <string>

#include "store/open_ledger.h"
#include "store/signed_log.h"

/// Where an operator's ledger and its key lie.
namespace fieldprint::store {

struct DataFolder {
  std::string folder;    ///< holds ledger.key, ledger.pub, and ledger.sqlite unless `database` is set
  std::string database;  ///< URL of a PostgreSQL database; empty: none

  std::string ledger() const { return database.empty() ? folder + "/ledger.sqlite" : database; }
  std::string signing_key() const { return folder + "/ledger.key"; }
  std::string public_key() const { return folder + "/ledger.pub"; }
};

/// Opens the log in a folder that exists, or begins one there with a key of its own; the public key is
/// written beside it.
Result<std::unique_ptr<SignedLog>> open_log(const DataFolder& place);

/// A log that lives in memory as long as the object.
Result<std::unique_ptr<SignedLog>> open_passing_log();

}  // namespace fieldprint::store
