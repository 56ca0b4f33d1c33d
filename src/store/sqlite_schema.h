#pragma once

#include "store/sqlite.h"
#include "store/sqlite_ledger_store.h"

namespace fieldprint::store::sqlite {

/// Creates the ledger's tables in an empty database, unless it is only examined; refuses one that is not a
/// ledger of this version without changing it.
Status prepare_schema(Database& database, const SqliteOptions& options);

/// Write-ahead log, flushed at every commit.
Status configure(Database& database, const SqliteOptions& options, bool in_memory);

}  // namespace fieldprint::store::sqlite
