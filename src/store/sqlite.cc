#include "store/sqlite.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <system_error>
#include <utility>

namespace fieldprint::store::sqlite {
namespace {

Error explain(int code, std::string_view message, int system_error, const std::string& path,
              std::string_view doing) {
  const auto say = [&](std::string_view why) { return fmt::format("cannot {} {}: {}", doing, path, why); };
  switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return environment_error(say("the database is locked by another process; try again when it is done"));
    case SQLITE_FULL:
      return environment_error(say("the disk or the database's size limit is full; free some space"));
    case SQLITE_READONLY:
    case SQLITE_PERM:
      return environment_error(
          say("the database is read-only; check the permissions of the file and its folder"));
    case SQLITE_CORRUPT:
      return environment_error(
          say(fmt::format("the database is damaged ({}); restore it from a copy", message)));
    case SQLITE_NOTADB:
      return caller_error(say("the file is no SQLite database"));
    case SQLITE_CANTOPEN:
      return caller_error(say(system_error != 0
                                  ? std::generic_category().message(system_error)
                                  : std::string("check that its folder exists and may be written")));
    case SQLITE_IOERR:
      return environment_error(say(
          system_error != 0 ? fmt::format("{}: {}", message, std::generic_category().message(system_error))
                            : std::string(message)));
    default:
      return environment_error(say(message));
  }
}

// To read a database in write-ahead mode SQLite needs its log and index, and makes them if they are not
// there.
bool cannot_have_log(const std::string& path) {
  std::error_code failure;
  const std::filesystem::path folder = std::filesystem::absolute(path, failure).parent_path();
  return ::faccessat(AT_FDCWD, folder.c_str(), W_OK, AT_EACCESS) != 0 &&
         ::faccessat(AT_FDCWD, (path + "-wal").c_str(), F_OK, AT_EACCESS) != 0;
}

// RFC 3986: what is not a letter, digit or one of "-._~/" is escaped.
std::string immutable_uri(const std::string& path) {
  std::string uri = "file:";
  for (const char c : path) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("-._~/").find(c) != std::string_view::npos;
    uri += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return uri + "?immutable=1";
}

}  // namespace

Result<Database> Database::open(const std::string& path, int busy_timeout_ms, Mode mode) {
  sqlite3* raw = nullptr;
  int flags = SQLITE_OPEN_NOMUTEX;
  const bool reads = mode == Mode::kRead || mode == Mode::kFollow;
  flags |= reads ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
  if (mode == Mode::kCreate) flags |= SQLITE_OPEN_CREATE;
  const bool frozen = reads && cannot_have_log(path);
  if (frozen && mode == Mode::kFollow) {
    return environment_error(
        fmt::format("cannot follow {}: it has no write-ahead log, and its folder may not be written to begin "
                    "one; start when somebody has it open, or allow writing to the folder",
                    path));
  }
  const std::string name = frozen ? immutable_uri(path) : path;
  const int code = sqlite3_open_v2(name.c_str(), &raw, flags | (frozen ? SQLITE_OPEN_URI : 0), nullptr);
  CHECK(raw != nullptr, "SQLite is out of memory");
  Database database(std::unique_ptr<sqlite3, Close>(raw), path);
  if (code != SQLITE_OK) return database.error("open");
  sqlite3_extended_result_codes(raw, 1);
  sqlite3_busy_timeout(raw, busy_timeout_ms);
  return database;
}

Status Database::execute(const char* sql) {
  if (sqlite3_exec(handle_.get(), sql, nullptr, nullptr, nullptr) != SQLITE_OK) return error("use");
  return {};
}

Result<Statement> Database::prepare(std::string_view sql) {
  sqlite3_stmt* raw = nullptr;
  const int code = sqlite3_prepare_v3(handle_.get(), sql.data(), static_cast<int>(sql.size()),
                                      SQLITE_PREPARE_PERSISTENT, &raw, nullptr);
  if (code != SQLITE_OK) return error("use");
  return Statement(raw);
}

const volatile std::uint8_t* Database::log_index_header() const {
  // The index is asked for through SQLite's own file: another descriptor of it, once closed, would end the
  // locks of this process.
  constexpr int kRegionBytes = 32768;
  sqlite3_file* file = nullptr;
  if (sqlite3_file_control(handle_.get(), "main", SQLITE_FCNTL_FILE_POINTER, &file) != SQLITE_OK)
    return nullptr;
  if (file == nullptr || file->pMethods == nullptr || file->pMethods->iVersion < 2) return nullptr;
  volatile void* region = nullptr;
  if (file->pMethods->xShmMap(file, 0, kRegionBytes, 0, &region) != SQLITE_OK) return nullptr;
  return static_cast<const volatile std::uint8_t*>(region);
}

Result<std::int64_t> Database::number(std::string_view sql) {
  auto statement = prepare(sql);
  if (!statement) return statement.error();
  auto row = statement->step(*this, "read");
  if (!row) return row.error();
  return *row ? statement->number(0) : 0;
}

Result<std::string> Database::text(std::string_view sql) {
  auto statement = prepare(sql);
  if (!statement) return statement.error();
  auto row = statement->step(*this, "read");
  if (!row) return row.error();
  return *row ? statement->text(0) : std::string();
}

Error Database::error(std::string_view doing) const {
  const int code = sqlite3_errcode(handle_.get());
  // The statements are ours: where one means nothing (SQLITE_ERROR) the tables or the format are not.
  const int kind = code & 0xff;
  if (examined_ && (kind == SQLITE_CORRUPT || kind == SQLITE_NOTADB || kind == SQLITE_ERROR)) {
    return refuted(fmt::format("the database {} is damaged: {}", path_, sqlite3_errmsg(handle_.get())));
  }
  return explain(code, sqlite3_errmsg(handle_.get()), sqlite3_system_errno(handle_.get()), path_, doing);
}

Statement& Statement::bind(std::int64_t value) {
  CHECK(sqlite3_bind_int64(handle_.get(), ++bound_, value) == SQLITE_OK);
  return *this;
}

Statement& Statement::bind(std::span<const std::uint8_t> bytes) {
  // A null pointer would bind NULL instead of an empty blob.
  const void* data = bytes.empty() ? static_cast<const void*>("") : bytes.data();
  CHECK(sqlite3_bind_blob64(handle_.get(), ++bound_, data, bytes.size(), SQLITE_STATIC) == SQLITE_OK);
  return *this;
}

Statement& Statement::bind(std::string_view text) {
  CHECK(sqlite3_bind_text64(handle_.get(), ++bound_, text.data(), text.size(), SQLITE_STATIC, SQLITE_UTF8) ==
        SQLITE_OK);
  return *this;
}

Result<bool> Statement::step(const Database& database, std::string_view doing) {
  const int code = sqlite3_step(handle_.get());
  if (code == SQLITE_ROW) return true;
  if (code == SQLITE_DONE) return false;
  return database.error(doing);
}

std::vector<std::uint8_t> Statement::blob(int column) const {
  const auto* data = static_cast<const std::uint8_t*>(sqlite3_column_blob(handle_.get(), column));
  const int size = sqlite3_column_bytes(handle_.get(), column);
  return {data, data + size};
}

std::string Statement::text(int column) const {
  const auto* data = reinterpret_cast<const char*>(sqlite3_column_text(handle_.get(), column));
  return data == nullptr
             ? std::string()
             : std::string(data, static_cast<std::size_t>(sqlite3_column_bytes(handle_.get(), column)));
}

void Statement::reset() {
  // Its result repeats the last step's, which step() has reported.
  (void)sqlite3_reset(handle_.get());
  (void)sqlite3_clear_bindings(handle_.get());
  bound_ = 0;
}

Result<Transaction> Transaction::begin(Database& database) {
  if (Status status = database.execute("BEGIN IMMEDIATE"); !status) return status.error();
  return Transaction(database);
}

Result<Transaction> Transaction::snapshot(Database& database) {
  if (Status status = database.execute("BEGIN"); !status) return status.error();
  return Transaction(database);
}

Transaction::~Transaction() {
  // Some errors have rolled back already; then there is nothing left to do and SQLite says so.
  if (database_ != nullptr) (void)database_->execute("ROLLBACK");
}

Status Transaction::commit() {
  if (Status status = database_->execute("COMMIT"); !status) return status;
  database_ = nullptr;
  return {};
}

}  // namespace fieldprint::store::sqlite
