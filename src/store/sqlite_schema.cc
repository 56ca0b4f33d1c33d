#include "store/sqlite_schema.h"

#include <algorithm>

#include "base/fault_point.h"

namespace fieldprint::store::sqlite {
namespace {

constexpr std::int64_t kApplicationId = 0x6670'6c67;  // "fplg", in the file's header
constexpr std::int64_t kSchemaVersion = 1;

constexpr const char* kSchema = R"sql(
  CREATE TABLE leaves (idx INTEGER PRIMARY KEY, bytes BLOB NOT NULL) STRICT;
  CREATE TABLE nodes (level INTEGER NOT NULL, idx INTEGER NOT NULL, hash BLOB NOT NULL,
                      PRIMARY KEY (level, idx)) STRICT, WITHOUT ROWID;
  CREATE TABLE tree (one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL) STRICT;
  CREATE TABLE checkpoints (size INTEGER PRIMARY KEY, note TEXT NOT NULL) STRICT;
  INSERT INTO tree VALUES (1, 0);
)sql";

}  // namespace

Status prepare_schema(Database& database, const SqliteOptions& options) {
  auto transaction = options.reads_only() ? Transaction::snapshot(database) : Transaction::begin(database);
  if (!transaction) return transaction.error();
  auto application = database.number("PRAGMA application_id");
  if (!application) return application.error();
  auto version = database.number("PRAGMA user_version");
  if (!version) return version.error();
  auto tables = database.number("SELECT count(*) FROM sqlite_schema");
  if (!tables) return tables.error();

  if (*application == 0 && *version == 0 && *tables == 0) {
    if (options.reads_only() || !options.create)
      return caller_error(fmt::format("{} is an empty database and no ledger", database.path()));
    if (Status status = database.execute(kSchema); !status) return status;
    const std::string header =
        fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {}", kApplicationId, kSchemaVersion);
    if (Status status = database.execute(header.c_str()); !status) return status;
    if (Status status = FAULT_POINT("store.schema.before_commit"); !status) return status;
    if (Status status = transaction->commit(); !status) return status;
    CRASH_POINT("store.schema.committed");
    return {};
  }
  if (*application != kApplicationId) {
    return caller_error(fmt::format("{} is a database of another program, not a ledger", database.path()));
  }
  if (*version != kSchemaVersion) {
    return caller_error(fmt::format("the ledger {} has schema version {}, but this program knows version {}",
                                    database.path(), *version, kSchemaVersion));
  }
  return {};
}

Status configure(Database& database, const SqliteOptions& options, bool in_memory) {
  if (options.reads_only()) return database.execute("PRAGMA cache_size = -16384");
  auto mode = database.text("PRAGMA journal_mode = WAL");
  if (!mode) return mode.error();
  if (*mode != (in_memory ? "memory" : "wal")) {
    return environment_error(fmt::format(
        "cannot use {}: its file system offers no write-ahead log; put the ledger on a local disk",
        database.path()));
  }
  // FULL: the log is flushed at every commit, so that an acknowledged leaf survives a power cut.
  if (Status status = database.execute("PRAGMA synchronous = FULL"); !status) return status;
  // A commit that moves the log into the database waits for two more flushes; 64 MiB makes them rare.
  if (Status status = database.execute("PRAGMA wal_autocheckpoint = 16384; PRAGMA cache_size = -16384");
      !status) {
    return status;
  }
  if (options.max_file_bytes > 0) {
    auto page = database.number("PRAGMA page_size");
    if (!page) return page.error();
    const std::string limit =
        fmt::format("PRAGMA max_page_count = {}", std::max(options.max_file_bytes / *page, std::int64_t{1}));
    return database.execute(limit.c_str());
  }
  return {};
}

}  // namespace fieldprint::store::sqlite
