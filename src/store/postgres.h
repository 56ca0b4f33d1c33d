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
  template <class T>
  Arguments& add_all(const std::vector<T>& items);  ///< an array of bytea, from ranges of bytes

 private:
  friend class Connection;
  static std::string array_head(Oid element, std::size_t count);
  static void put_element(std::string& array, std::span<const std::uint8_t> bytes);
  void push_bytea_array(std::string bytes);
  void push(Oid type, std::string bytes);
  std::vector<Oid> types_;
  std::vector<std::string> values_;
};

/// The rows that a statement gave.
class Rows {
 public:
  explicit Rows(PGresult* result) : result_(result) {}
  int count() const { return PQntuples(result_.get()); }
  /// Whether the statement changed a row.
  bool changed() const { return std::string_view(PQcmdTuples(result_.get())) != "0"; }
  bool null(int row, int column) const { return PQgetisnull(result_.get(), row, column) != 0; }
  std::int64_t number(int row, int column) const;  ///< of a bigint
  std::span<const std::uint8_t> bytes(int row, int column) const;

 private:
  struct Clear {
    void operator()(PGresult* result) const { PQclear(result); }
  };
  std::unique_ptr<PGresult, Clear> result_;
};

/// The channel on which a ledger's growth is announced.
inline constexpr char kGrowthChannel[] = "fieldprint_ledger";

/// One connection; not for several threads at once. After the server was lost the next begin() connects
/// again.
class Connection {
 public:
  /// `url` as libpq takes it: postgresql://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE[?...]. A malformed one is
  /// the caller's error, and nothing of it is in the message.
  static Result<std::unique_ptr<Connection>> open(const std::string& url);

  /// Makes the connection usable, again if it has to: call it where an operation starts.
  Status ensure();
  bool alive() const { return PQstatus(handle_.get()) == CONNECTION_OK; }
  /// From now on, connections made again included, notices announcements on kGrowthChannel.
  Status listen();
  /// Whether there was an announcement since the last call, or one may have been missed; no round trip unless
  /// the connection was lost.
  Result<bool> heard();
  /// The same without ever waiting; nothing if the connection was lost.
  std::optional<bool> overhear();
  Status execute(const char* sql) { return execute(sql, {}); }
  Status execute(const char* sql, const Arguments& arguments);
  Result<Rows> query(const char* sql, const Arguments& arguments = {});

  /// What the database is called in messages; no password is in it.
  const std::string& name() const { return name_; }

 private:
  struct Close {
    void operator()(PGconn* handle) const { PQfinish(handle); }
  };
  explicit Connection(PGconn* handle) : handle_(handle) {}
  bool up() const;
  Status prepare_session();
  Error error(std::string_view doing) const;
  std::unique_ptr<PGconn, Close> handle_;
  std::string name_;
  bool listening_ = false;
};

template <class T>
Arguments& Arguments::add_all(const std::vector<T>& items) {
  constexpr Oid kBytea = 17;
  std::string bytes = array_head(kBytea, items.size());
  for (const T& item : items) put_element(bytes, item);
  push_bytea_array(std::move(bytes));
  return *this;
}

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
