#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "store/ledger_store.h"

namespace fieldprint::store {

enum class Access {
  kAppend,    ///< opens or creates
  kContinue,  ///< opens what is there, to add to it
  kRead,      ///< opens what is there, writes nothing, and checks that what it states fits together
  kFollow,    ///< the same, and goes on to see what others append, however long it is open
  kExamine,   ///< opens what is there, as it is, for an audit
};

/// Whether a location names a PostgreSQL database (postgresql:// or postgres://) rather than an SQLite file.
bool is_database_url(std::string_view location);

/// Opens the ledger at a location: a PostgreSQL URL, or the path of an SQLite file.
Result<std::unique_ptr<LedgerStore>> open_ledger(const std::string& location, Access access);

}  // namespace fieldprint::store
