#include "store/postgres.h"

#include <charconv>
#include <limits>
#include <utility>

namespace fieldprint::store::postgres {
namespace {

// Type numbers of PostgreSQL's catalogue (pg_type.dat), which never change.
constexpr Oid kBytea = 17;
constexpr Oid kBigint = 20;
constexpr Oid kByteaArray = 1001;
constexpr Oid kBigintArray = 1016;

template <class T>
void put_big_endian(std::string& out, T value) {
  for (int shift = static_cast<int>(sizeof(T)) * 8 - 8; shift >= 0; shift -= 8) {
    out.push_back(static_cast<char>(static_cast<std::make_unsigned_t<T>>(value) >> shift & 0xff));
  }
}

std::string_view as_text(std::span<const std::uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// libpq ends its messages with a newline and may give several lines.
std::string one_line(std::string_view message) {
  std::string line(message);
  line.erase(line.find_last_not_of(" \n") + 1);
  for (char& c : line) c = c == '\n' ? ' ' : c;
  return line;
}

// A '@' after the one that ends user and password, and before the options: of a password that has '@' or '/'
// in it libpq takes the rest for a host or a database, and names it in its messages.
bool has_stray_at(std::string_view url) {
  std::string_view rest = url.substr(url.find("//") + 2);
  const auto end = rest.find_first_of("@/");
  if (end != std::string_view::npos && rest[end] == '@') rest.remove_prefix(end + 1);
  return rest.substr(0, rest.find('?')).find('@') != std::string_view::npos;
}

// One or several, with commas between them; where one is missing libpq takes its default.
bool are_ports(std::string_view list) {
  while (true) {
    const std::string_view port = list.substr(0, list.find(','));
    std::uint16_t number = 1;
    const auto [end, failure] = std::from_chars(port.data(), port.data() + port.size(), number);
    if (!port.empty() && (failure != std::errc() || end != port.data() + port.size() || number == 0))
      return false;
    if (port.size() == list.size()) return true;
    list.remove_prefix(port.size() + 1);
  }
}

// No column of ours is without its number, whatever the table's damaged row says.
bool lacks_number(const PGresult* result) {
  for (int column = 0; column < PQnfields(result); ++column) {
    if (PQftype(result, column) != kBigint) continue;
    for (int row = 0; row < PQntuples(result); ++row) {
      if (PQgetisnull(result, row, column) != 0) return true;
    }
  }
  return false;
}

// Before libpq sees a URL: what it says of one that it cannot read may be the password, or a part of it.
Status check_url(const std::string& url) {
  const Error malformed = caller_error(
      "malformed PostgreSQL URL (postgresql://USER:PASSWORD@HOST:PORT/DATABASE); percent-encode the "
      "password");
  const std::unique_ptr<PQconninfoOption, decltype(&PQconninfoFree)> options(
      PQconninfoParse(url.c_str(), nullptr), &PQconninfoFree);
  if (!options || has_stray_at(url)) return malformed;
  for (const PQconninfoOption* option = options.get(); option->keyword != nullptr; ++option) {
    if (std::string_view(option->keyword) == "port" && option->val != nullptr && !are_ports(option->val))
      return malformed;
  }
  return {};
}

}  // namespace

void Arguments::push(Oid type, std::string bytes) {
  types_.push_back(type);
  values_.push_back(std::move(bytes));
}

Arguments& Arguments::add(std::int64_t value) {
  std::string bytes;
  put_big_endian(bytes, value);
  push(kBigint, std::move(bytes));
  return *this;
}

Arguments& Arguments::add(std::span<const std::uint8_t> bytes) { return add(as_text(bytes)); }

Arguments& Arguments::add(std::string_view bytes) {
  push(kBytea, std::string(bytes));
  return *this;
}

std::string Arguments::array_head(Oid element, std::size_t count) {
  std::string head;
  put_big_endian(head, std::int32_t{count == 0 ? 0 : 1});  // dimensions
  put_big_endian(head, std::int32_t{0});                   // no nulls
  put_big_endian(head, static_cast<std::int32_t>(element));
  if (count == 0) return head;
  put_big_endian(head, static_cast<std::int32_t>(count));
  put_big_endian(head, std::int32_t{1});  // the first index
  return head;
}

void Arguments::put_element(std::string& array, std::span<const std::uint8_t> bytes) {
  put_big_endian(array, static_cast<std::int32_t>(bytes.size()));
  array.append(as_text(bytes));
}

void Arguments::push_bytea_array(std::string bytes) { push(kByteaArray, std::move(bytes)); }

Arguments& Arguments::add(std::span<const std::int64_t> values) {
  std::string bytes = array_head(kBigint, values.size());
  for (const std::int64_t value : values) {
    put_big_endian(bytes, std::int32_t{sizeof value});
    put_big_endian(bytes, value);
  }
  push(kBigintArray, std::move(bytes));
  return *this;
}

std::int64_t Rows::number(int row, int column) const {
  const auto data = bytes(row, column);
  CHECK(data.size() == sizeof(std::int64_t), "the statement gives no bigint");
  std::uint64_t value = 0;
  for (const std::uint8_t byte : data) value = value << 8 | byte;
  return static_cast<std::int64_t>(value);
}

std::span<const std::uint8_t> Rows::bytes(int row, int column) const {
  return {reinterpret_cast<const std::uint8_t*>(PQgetvalue(result_.get(), row, column)),
          static_cast<std::size_t>(PQgetlength(result_.get(), row, column))};
}

Result<std::unique_ptr<Connection>> Connection::open(const std::string& url) {
  if (Status status = check_url(url); !status) return status.error();
  // A host or a network that falls silent is given up within half a minute; a server process that stands
  // still is not, because its system goes on acknowledging. What the URL says comes later and so goes first.
  constexpr const char* kKeys[] = {"connect_timeout",
                                   "keepalives_idle",
                                   "keepalives_interval",
                                   "keepalives_count",
                                   "tcp_user_timeout",
                                   "dbname",
                                   nullptr};
  const char* const values[] = {"10", "10", "5", "3", "30000", url.c_str(), nullptr};
  std::unique_ptr<Connection> connection(new Connection(PQconnectdbParams(kKeys, values, 1)));
  PGconn* handle = connection->handle_.get();
  CHECK(handle != nullptr, "libpq is out of memory");
  if (PQstatus(handle) != CONNECTION_OK) {
    return environment_error(
        fmt::format("cannot connect to PostgreSQL: {}; check the URL (postgresql://USER@HOST/DATABASE) and "
                    "that the server runs",
                    one_line(PQerrorMessage(handle))));
  }
  // What the server remarks on its way is no output of ours; errors are reported by whom they meet.
  PQsetNoticeProcessor(
      handle, [](void*, const char*) {}, nullptr);
  const auto text = [](const char* value) { return value == nullptr ? "" : value; };
  connection->name_ = fmt::format("postgresql://{}@{}:{}/{}", text(PQuser(handle)), text(PQhost(handle)),
                                  text(PQport(handle)), text(PQdb(handle)));
  if (Status status = connection->prepare_session(); !status) return status.error();
  return connection;
}

Status Connection::prepare_session() {
  // Acknowledged means flushed, whatever the server's default is; a lock is not waited for without end.
  Status status = execute(
      "SET synchronous_commit = on; SET client_min_messages = warning; SET lock_timeout = '10s'; "
      "SET idle_in_transaction_session_timeout = '15s'");
  return status.ok() && listening_ ? listen() : status;
}

Status Connection::listen() {
  listening_ = true;
  return execute(fmt::format("LISTEN {}", kGrowthChannel).c_str());
}

Result<bool> Connection::heard() {
  if (const auto heard = overhear()) return *heard;
  if (Status status = ensure(); !status) return status.error();
  return true;
}

// What a server says last and that it is gone are two reads.
bool Connection::up() const {
  return PQconsumeInput(handle_.get()) == 1 && PQconsumeInput(handle_.get()) == 1 && alive();
}

std::optional<bool> Connection::overhear() {
  if (!up()) return std::nullopt;
  bool heard = false;
  while (
      const std::unique_ptr<PGnotify, decltype(&PQfreemem)> notice{PQnotifies(handle_.get()), &PQfreemem}) {
    heard = true;
  }
  return heard;
}

Status Connection::ensure() {
  if (up()) return {};
  PQreset(handle_.get());
  if (PQstatus(handle_.get()) != CONNECTION_OK) return error("connect to");
  return prepare_session();
}

Error Connection::error(std::string_view doing) const {
  return environment_error(
      fmt::format("cannot {} {}: {}", doing, name_, one_line(PQerrorMessage(handle_.get()))));
}

Status Connection::execute(const char* sql, const Arguments& arguments) {
  if (arguments.types_.empty()) {
    // Of several statements the last one's result; after one that failed the others are not run.
    PGresult* result = PQexec(handle_.get(), sql);
    const Rows holder(result);
    const ExecStatusType code = PQresultStatus(result);
    return code == PGRES_TUPLES_OK || code == PGRES_COMMAND_OK ? Status() : Status(error("use"));
  }
  auto rows = query(sql, arguments);
  return rows ? Status() : Status(rows.error());
}

Result<Rows> Connection::query(const char* sql, const Arguments& arguments) {
  std::vector<const char*> values;
  std::vector<int> lengths;
  for (const std::string& value : arguments.values_) {
    values.push_back(value.data());
    lengths.push_back(static_cast<int>(value.size()));
  }
  const std::vector<int> formats(values.size(), 1);
  PGresult* result = PQexecParams(handle_.get(), sql, static_cast<int>(values.size()),
                                  arguments.types_.data(), values.data(), lengths.data(), formats.data(), 1);
  Rows rows(result);
  const ExecStatusType status = PQresultStatus(result);
  if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK) return error("use");
  if (lacks_number(result)) {
    return environment_error(fmt::format(
        "the database {} is damaged: a number that every row has is missing; restore it from a copy", name_));
  }
  return rows;
}

Result<Transaction> Transaction::begin(Connection& connection) {
  if (Status status = connection.ensure(); !status) return status.error();
  if (Status status = connection.execute("BEGIN"); !status) return status.error();
  return Transaction(connection);
}

Transaction::~Transaction() {
  // Of a connection that is lost the server rolls back by itself.
  if (connection_ != nullptr) (void)connection_->execute("ROLLBACK");
}

Status Transaction::commit() {
  Connection& connection = *std::exchange(connection_, nullptr);
  Status status = connection.execute("COMMIT");
  if (status.ok() || connection.alive()) return status;
  return environment_error(
      fmt::format("{}; the connection was lost while committing, so it is not known whether the ledger kept "
                  "this: look before "
                  "you try again",
                  status.error().message));
}

}  // namespace fieldprint::store::postgres
