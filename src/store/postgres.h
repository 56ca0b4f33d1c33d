#pragma once

#include <libpq-fe.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

/// The little of PostgreSQL that the stores use, over libpq in its binary formats.
namespace fieldprint::store::postgres {

/// Arguments of one statement, $1 first.
class Arguments {
 public:
  Arguments& add(std::int64_t value);
  Arguments& add(std::span<const std::uint8_t> bytes);
  Arguments& add(std::string_view bytes);
  Arguments& add(std::span<const std::int64_t> values);  ///< an array of bigint

 private:
  friend class Connection;
  void push(Oid type, std::string bytes);
  std::vector<Oid> types_;
  std::vector<std::string> values_;
};

/// The rows that a statement gave.
class Rows {
 public:
  explicit Rows(PGresult* result) : result_(result) {}
  int count() const { return PQntuples(result_.get()); }
  bool null(int row, int column) const { return PQgetisnull(result_.get(), row, column) != 0; }
  std::int64_t number(int row, int column) const;  ///< of a bigint
  std::span<const std::uint8_t> bytes(int row, int column) const;

 private:
  struct Clear {
    void operator()(PGresult* result) const { PQclear(result); }
  };
  std::unique_ptr<PGresult, Clear> result_;
};

/// Rows in the binary format of COPY.
class CopyRows {
 public:
  CopyRows();
  CopyRows& row(int columns);
  CopyRows& add(std::int64_t value);
  CopyRows& add(std::span<const std::uint8_t> bytes);
  std::string finish();

 private:
  std::string data_;
};

/// One connection; not for several threads at once. After the server was lost the next begin() connects
/// again.
class Connection {
 public:
  /// `url` as libpq takes it: postgresql://[USER@]HOST[:PORT]/DATABASE[?...].
  static Result<std::unique_ptr<Connection>> open(const std::string& url);

  /// Makes the connection usable, again if it has to: call it where an operation starts.
  Status ensure();
  bool alive() const { return PQstatus(handle_.get()) == CONNECTION_OK; }
  Status execute(const char* sql) { return execute(sql, {}); }
  Status execute(const char* sql, const Arguments& arguments);
  Result<Rows> query(const char* sql, const Arguments& arguments = {});
  /// COPY ... FROM STDIN (FORMAT binary).
  Status copy(const char* sql, std::string_view rows);

  /// What the database is called in messages; no password is in it.
  const std::string& name() const { return name_; }

 private:
  struct Close {
    void operator()(PGconn* handle) const { PQfinish(handle); }
  };
  explicit Connection(PGconn* handle) : handle_(handle) {}
  Status prepare_session();
  Error error(std::string_view doing) const;
  std::unique_ptr<PGconn, Close> handle_;
  std::string name_;
};

/// Ends with a rollback unless committed.
class Transaction {
 public:
  static Result<Transaction> begin(Connection& connection);
  Transaction(Transaction&& other) noexcept : connection_(std::exchange(other.connection_, nullptr)) {}
  Transaction& operator=(Transaction&&) = delete;
  ~Transaction();
  Status commit();

 private:
  explicit Transaction(Connection& connection) : connection_(&connection) {}
  Connection* connection_;
};

}  // namespace fieldprint::store::postgres
