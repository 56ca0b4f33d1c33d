#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

/// The little of SQLite that the stores use, with errors that say whose they are and what to do.
namespace fieldprint::store::sqlite {

class Statement;

enum class Mode { kCreate, kWrite, kRead, kFollow };

class Database {
 public:
  /// ":memory:" keeps everything in memory. To read, a folder that may not be written will do: where there is
  /// no write-ahead log, the file is taken to stay as it is. To follow what others write there must be a log,
  /// or a folder to begin one in.
  static Result<Database> open(const std::string& path, int busy_timeout_ms, Mode mode = Mode::kCreate);

  Status execute(const char* sql);
  Result<Statement> prepare(std::string_view sql);
  /// The first column of the first row of a query that gives one.
  Result<std::int64_t> number(std::string_view sql);
  Result<std::string> text(std::string_view sql);

  /// Of a database with a write-ahead log, once it was read: the header of the log's index, in memory that
  /// all its connections share. Every commit changes it (SQLite's "WAL-mode File Format", section 2.1). Null
  /// where there is none. It stays as long as this object.
  const volatile std::uint8_t* log_index_header() const;
  static constexpr std::size_t kLogIndexHeaderBytes = 48;

  /// From now on damage to the file is what is looked for: an answer (refuted), not a failure.
  void examine() { examined_ = true; }

  /// The database's last error; `doing` names the operation: "append to the ledger".
  Error error(std::string_view doing) const;
  const std::string& path() const { return path_; }

 private:
  struct Close {
    void operator()(sqlite3* handle) const { sqlite3_close_v2(handle); }
  };
  Database(std::unique_ptr<sqlite3, Close> handle, std::string path)
      : handle_(std::move(handle)), path_(std::move(path)) {}
  std::unique_ptr<sqlite3, Close> handle_;
  std::string path_;
  bool examined_ = false;
};

/// A prepared statement. Bind in order, step, read columns; reset() makes it ready again. Must not outlive
/// its database.
class Statement {
 public:
  Statement& bind(std::int64_t value);
  Statement& bind(std::span<const std::uint8_t> bytes);  ///< the bytes must stay until the next reset
  Statement& bind(std::string_view text);

  /// True if there is a row, false at the end.
  Result<bool> step(const Database& database, std::string_view doing);
  std::int64_t number(int column) const { return sqlite3_column_int64(handle_.get(), column); }
  std::vector<std::uint8_t> blob(int column) const;
  std::string text(int column) const;
  void reset();

 private:
  friend class Database;
  struct Finalize {
    void operator()(sqlite3_stmt* handle) const { sqlite3_finalize(handle); }
  };
  explicit Statement(sqlite3_stmt* handle) : handle_(handle) {}
  std::unique_ptr<sqlite3_stmt, Finalize> handle_;
  int bound_ = 0;
};

/// Resets a statement when it goes out of scope, so that no read lock stays behind.
class Use {
 public:
  explicit Use(Statement& statement) : statement_(statement) {}
  ~Use() { statement_.reset(); }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  Statement* operator->() { return &statement_; }

 private:
  Statement& statement_;
};

/// Ends with a rollback unless committed.
class Transaction {
 public:
  static Result<Transaction> begin(Database& database);     ///< takes the write lock at once
  static Result<Transaction> snapshot(Database& database);  ///< one state for all reads; nothing to commit
  Transaction(Transaction&& other) noexcept : database_(std::exchange(other.database_, nullptr)) {}
  Transaction& operator=(Transaction&&) = delete;
  ~Transaction();
  Status commit();

 private:
  explicit Transaction(Database& database) : database_(&database) {}
  Database* database_;
};

}  // namespace fieldprint::store::sqlite
