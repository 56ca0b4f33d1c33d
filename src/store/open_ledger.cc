#include "store/open_ledger.h"

#include <filesystem>

#include "store/postgres_ledger_store.h"
#include "store/sqlite_ledger_store.h"

namespace fieldprint::store {
namespace {

template <class Store>
Result<std::unique_ptr<LedgerStore>> as_ledger(Result<std::unique_ptr<Store>> store) {
  if (!store) return store.error();
  return std::unique_ptr<LedgerStore>(std::move(*store));
}

}  // namespace

bool is_database_url(std::string_view location) {
  return location.starts_with("postgresql://") || location.starts_with("postgres://");
}

Result<std::unique_ptr<LedgerStore>> open_ledger(const std::string& location, Access access) {
  const bool create = access == Access::kAppend;
  const bool follow = access == Access::kFollow;
  const bool read_only = access == Access::kRead || follow;
  const bool examine = access == Access::kExamine;
  if (is_database_url(location)) {
    return as_ledger(
        PostgresLedgerStore::open(location, {.create = create, .read_only = read_only, .examine = examine}));
  }
  std::error_code failure;
  if (!create && !std::filesystem::exists(location, failure)) {
    if (failure) return environment_error(fmt::format("cannot examine {}: {}", location, failure.message()));
    return caller_error(
        fmt::format("there is no ledger {}; `fieldprint run --data FOLDER` begins one", location));
  }
  return as_ledger(SqliteLedgerStore::open(
      location, {.create = create, .read_only = read_only, .follow = follow, .examine = examine}));
}

}  // namespace fieldprint::store
