#include "store/postgres_ledger_store.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/bounds.h"
#include "base/fault_point.h"

namespace fieldprint::store {
namespace {

using postgres::Arguments;
using postgres::Connection;
using postgres::Transaction;

constexpr std::int64_t kSchemaVersion = 1;

// Notes are bytes, so that they do not depend on the database's encoding. Leaves are not compressed: digests
// do not shrink.
constexpr const char* kSchema = R"sql(
  CREATE TABLE fieldprint_ledger (one integer PRIMARY KEY CHECK (one = 1), version bigint NOT NULL, size bigint NOT NULL);
  CREATE TABLE fieldprint_leaves (idx bigint PRIMARY KEY, bytes bytea NOT NULL);
  ALTER TABLE fieldprint_leaves ALTER COLUMN bytes SET STORAGE EXTERNAL;
  CREATE TABLE fieldprint_nodes (level bigint NOT NULL, idx bigint NOT NULL, hash bytea NOT NULL,
                                 PRIMARY KEY (level, idx));
  CREATE TABLE fieldprint_checkpoints (size bigint PRIMARY KEY, note bytea NOT NULL);
)sql";

std::int64_t to_sql(std::uint64_t value) {
  return static_cast<std::int64_t>(std::min<std::uint64_t>(value, std::numeric_limits<std::int64_t>::max()));
}

bool to_digest(std::span<const std::uint8_t> bytes, Digest& out) {
  if (bytes.size() != out.size()) return false;
  std::copy(bytes.begin(), bytes.end(), out.begin());
  return true;
}

std::string to_text(std::span<const std::uint8_t> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Result<std::vector<KeptCheckpoint>> read_checkpoints(Connection& connection, std::uint64_t from, int limit) {
  auto rows = connection.query(
      "SELECT size, note FROM fieldprint_checkpoints WHERE size >= $1 ORDER BY size LIMIT $2",
      Arguments().add(to_sql(from)).add(std::int64_t{limit}));
  if (!rows) return rows.error();
  std::vector<KeptCheckpoint> kept;
  for (int i = 0; i < rows->count(); ++i) {
    kept.push_back({static_cast<std::uint64_t>(rows->number(i, 0)), to_text(rows->bytes(i, 1))});
  }
  return kept;
}

Result<std::optional<std::string>> read_last_checkpoint(Connection& connection) {
  auto rows = connection.query("SELECT note FROM fieldprint_checkpoints ORDER BY size DESC LIMIT 1");
  if (!rows) return rows.error();
  if (rows->count() == 0) return std::optional<std::string>();
  return std::optional<std::string>(to_text(rows->bytes(0, 0)));
}

// In one round trip; a subquery for each, which takes the index whatever the planner believes of the sizes.
Result<std::vector<std::optional<Digest>>> read_hashes(Connection& connection,
                                                       std::span<const ledger::NodeId> ids) {
  std::vector<std::int64_t> levels;
  std::vector<std::int64_t> indexes;
  for (const ledger::NodeId id : ids) {
    levels.push_back(id.level);
    indexes.push_back(to_sql(id.index));
  }
  auto rows = connection.query(
      "SELECT (SELECT hash FROM fieldprint_nodes n WHERE n.level = w.level AND n.idx = w.idx) "
      "FROM unnest($1::bigint[], $2::bigint[]) WITH ORDINALITY AS w (level, idx, place) ORDER BY w.place",
      Arguments().add(std::span<const std::int64_t>(levels)).add(std::span<const std::int64_t>(indexes)));
  if (!rows) return rows.error();
  CHECK(std::cmp_equal(rows->count(), ids.size()));
  std::vector<std::optional<Digest>> hashes;
  for (int i = 0; i < rows->count(); ++i) {
    Digest hash{};
    hashes.push_back(to_digest(rows->bytes(i, 0), hash) ? std::optional(hash) : std::nullopt);
  }
  return hashes;
}

}  // namespace

Result<std::unique_ptr<PostgresLedgerStore>> PostgresLedgerStore::open(const std::string& url,
                                                                       const PostgresOptions& options) {
  std::unique_ptr<PostgresLedgerStore> store(new PostgresLedgerStore());
  store->read_only_ = options.reads_only();
  store->url_ = url;
  for (Guarded* guarded : {&store->writer_, &store->reader_}) {
    auto connection = Connection::open(url);
    if (!connection) return connection.error();
    guarded->connection = std::move(*connection);
  }
  if (Status status = store->prepare_schema(options); !status) return status.error();
  if (options.examine) return store;
  auto tree = store->check_state();
  if (!tree) return tree.error();
  store->tree_ = std::move(*tree);
  return store;
}

Status PostgresLedgerStore::prepare_schema(const PostgresOptions& options) {
  Connection& connection = *writer_.connection;
  auto transaction = Transaction::begin(connection);
  if (!transaction) return transaction.error();
  if (options.create) {
    // Two processes that create the tables at once take turns.
    if (Status status = connection.execute("SELECT pg_advisory_xact_lock(1718774887)"); !status)
      return status;
  }
  auto there = connection.query("SELECT count(*) FROM pg_class WHERE oid = to_regclass('fieldprint_ledger')");
  if (!there) return there.error();
  if (there->number(0, 0) == 0) {
    if (options.reads_only() || !options.create)
      return caller_error(fmt::format("there is no ledger in {}", name()));
    if (Status status = connection.execute(kSchema); !status) return status;
    Status status = connection.execute("INSERT INTO fieldprint_ledger VALUES (1, $1, 0)",
                                       Arguments().add(kSchemaVersion));
    if (!status) return status;
    if (status = FAULT_POINT("store.schema.before_commit"); !status) return status;
    if (status = transaction->commit(); !status) return status;
    CRASH_POINT("store.schema.committed");
    return {};
  }
  auto version = connection.query("SELECT version FROM fieldprint_ledger");
  if (!version) return version.error();
  if (version->count() == 1 && version->number(0, 0) != kSchemaVersion) {
    return caller_error(fmt::format("the ledger {} has schema version {}, but this program knows version {}",
                                    name(), version->number(0, 0), kSchemaVersion));
  }
  return {};
}

// Within a transaction, which then is the only one that appends.
Result<std::uint64_t> PostgresLedgerStore::lock_size() {
  auto rows = writer_.connection->query("SELECT size FROM fieldprint_ledger FOR UPDATE");
  if (!rows) return rows.error();
  if (rows->count() != 1 || rows->number(0, 0) < 0) return damaged("it states no size");
  return static_cast<std::uint64_t>(rows->number(0, 0));
}

Result<ledger::Growth> PostgresLedgerStore::grow(std::span<const LeafView> leaves, const Seal& seal) {
  if (read_only_) return caller_error("this ledger was opened to be read; nothing may be added to it");
  if (Status status = check_leaves(leaves); !status) return status.error();
  const std::lock_guard lock(writer_.mutex);
  auto transaction = Transaction::begin(*writer_.connection);
  if (!transaction) return transaction.error();
  auto first = lock_size();
  if (!first) return first.error();
  const ledger::NodeReader nodes = [this](ledger::NodeId id) -> Result<Digest> {
    auto hash = read_hashes(*writer_.connection, {&id, 1});
    if (!hash) return hash.error();
    return hash->front() ? Result<Digest>(*hash->front()) : Result<Digest>(no_node(id));
  };
  // After the lock, with a snapshot of its own: it sees what the holder before committed.
  auto last = read_last_checkpoint(*writer_.connection);
  if (!last) return last.error();
  auto before = seal ? covered_tree(*first, *last, tree_, nodes) : load_tree(*first, nodes);
  if (!before) return before.error();
  if (Status status = FAULT_POINT("store.grow.before_write"); !status) return status.error();
  ledger::Growth growth(std::move(*before));
  for (const LeafView& leaf : leaves) growth.append(ledger::leaf_hash(leaf));
  if (Status status = insert(leaves, growth); !status) return status.error();
  if (seal) {
    auto note = seal({std::move(*last), growth.size(), growth.root(), nodes});
    if (!note) return note.error();
    if (Status status = put_checkpoint(growth.size(), *note); !status) return status.error();
  }
  if (Status status = FAULT_POINT("store.grow.before_commit"); !status) return status.error();
  if (Status status = transaction->commit(); !status) return status.error();
  ++grown_;  // here at once: the server's announcement takes its time
  CRASH_POINT("store.grow.committed");
  tree_ = growth.tree();
  return growth;
}

// A transaction that was lost with its connection holds the row until it has ended.
Status PostgresLedgerStore::settle() {
  const std::lock_guard lock(writer_.mutex);
  auto transaction = Transaction::begin(*writer_.connection);
  if (!transaction) return transaction.error();
  auto size = lock_size();
  return size ? Status() : Status(size.error());
}

// All rows in one statement, and so in one round trip.
Status PostgresLedgerStore::insert(std::span<const LeafView> leaves, const ledger::Growth& growth) {
  if (leaves.empty()) return {};
  std::vector<std::int64_t> levels;
  std::vector<std::int64_t> indexes;
  std::vector<Digest> hashes;
  for (int level = 0; level < 64; ++level) {
    std::uint64_t index = growth.old_size() >> level;
    for (const Digest& hash : growth.completed(level)) {
      levels.push_back(level);
      indexes.push_back(to_sql(index++));
      hashes.push_back(hash);
    }
  }
  Arguments arguments;
  arguments.add(to_sql(growth.old_size()))
      .add_all(std::vector<LeafView>(leaves.begin(), leaves.end()))
      .add(std::span<const std::int64_t>(levels))
      .add(std::span<const std::int64_t>(indexes))
      .add_all(hashes)
      .add(to_sql(growth.size()));
  return writer_.connection->execute(
      "WITH l AS (INSERT INTO fieldprint_leaves SELECT $1 + place - 1, bytes FROM unnest($2::bytea[]) WITH "
      "ORDINALITY "
      "AS given (bytes, place)), n AS (INSERT INTO fieldprint_nodes SELECT * FROM unnest($3::bigint[], "
      "$4::bigint[], "
      "$5::bytea[])) UPDATE fieldprint_ledger SET size = $6 RETURNING pg_notify('fieldprint_ledger', '')",
      arguments);
}

// Puts a note in its place, or joins its signatures to those of the one that is there.
Status PostgresLedgerStore::put_checkpoint(std::uint64_t size, std::string_view note) {
  constexpr const char* kInsert =
      "INSERT INTO fieldprint_checkpoints VALUES ($1, $2) ON CONFLICT (size) DO NOTHING";
  auto added = writer_.connection->query(kInsert, Arguments().add(to_sql(size)).add(note));
  if (!added) return added.error();
  if (added->changed()) return {};
  auto there = read_checkpoints(*writer_.connection, size, 1);
  if (!there) return there.error();
  std::optional<std::string> kept;
  if (!there->empty() && there->front().size == size) kept = std::move(there->front().note);
  auto merged = merge_notes(kept, note);
  if (!merged) return merged.error();
  return writer_.connection->execute(
      "INSERT INTO fieldprint_checkpoints VALUES ($1, $2) ON CONFLICT (size) DO UPDATE SET note = "
      "excluded.note",
      Arguments().add(to_sql(size)).add(std::string_view(*merged)));
}

Status PostgresLedgerStore::keep_checkpoint(std::string_view note) {
  if (read_only_) return caller_error("this ledger was opened to be read; nothing may be added to it");
  auto checkpoint = read_checkpoint(note);
  if (!checkpoint) return checkpoint.error();
  const std::lock_guard lock(writer_.mutex);
  auto transaction = Transaction::begin(*writer_.connection);
  if (!transaction) return transaction.error();
  auto now = lock_size();
  if (!now) return now.error();
  if (Status status = check_checkpoint(*checkpoint, *now); !status) return status;
  auto later = read_checkpoints(*writer_.connection, checkpoint->size, 1);
  if (!later) return later.error();
  if (!later->empty() && later->front().size != checkpoint->size) {
    return caller_error(
        fmt::format("the checkpoint states {} leaves, fewer than the last one's", checkpoint->size));
  }
  if (Status status = put_checkpoint(checkpoint->size, note); !status) return status;
  if (Status status = FAULT_POINT("store.checkpoint.before_commit"); !status) return status;
  if (Status status = transaction->commit(); !status) return status;
  CRASH_POINT("store.checkpoint.committed");
  return {};
}

Result<std::uint64_t> PostgresLedgerStore::size() {
  auto now = extent();
  if (!now) return now.error();
  return now->stated;
}

// Announcements may be lost on their way, by a pooler or a network that fell silent; then a follower looks
// again after bounds::kMaxLedgerSilence.
Result<std::uint64_t> PostgresLedgerStore::revision() {
  const std::lock_guard lock(listener_.mutex);
  bool raise = !listener_.connection;
  if (raise) {
    auto connection = Connection::open(url_);
    if (!connection) return connection.error();
    if (Status status = (*connection)->listen(); !status) return status.error();
    listener_.connection = std::move(*connection);
  } else {
    auto heard = listener_.connection->heard();
    if (!heard) return heard.error();
    raise = *heard || std::chrono::steady_clock::now() - raised_ >= bounds::kMaxLedgerSilence;
  }
  if (raise) {
    ++revision_;
    raised_ = std::chrono::steady_clock::now();
  }
  return revision_ + grown_;
}

// Who holds the lock may be connecting again.
std::optional<std::uint64_t> PostgresLedgerStore::glance() {
  const std::unique_lock lock(listener_.mutex, std::try_to_lock);
  if (!lock || !listener_.connection) return std::nullopt;
  const auto heard = listener_.connection->overhear();
  if (!heard) return std::nullopt;
  if (*heard) ++revision_;
  return revision_ + grown_;
}

Result<Extent> PostgresLedgerStore::extent() {
  const std::lock_guard lock(reader_.mutex);
  if (Status status = reader_.connection->ensure(); !status) return status.error();
  auto rows = reader_.connection->query(
      "SELECT size, (SELECT coalesce(max(idx) + 1, 0) FROM fieldprint_leaves), "
      "(SELECT coalesce(max(idx) + 1, 0) FROM fieldprint_nodes WHERE level = 0) FROM fieldprint_ledger");
  if (!rows) return rows.error();
  if (rows->count() != 1 || rows->number(0, 0) < 0) return damaged("it states no size");
  const auto column = [&](int i) { return static_cast<std::uint64_t>(rows->number(0, i)); };
  return Extent{column(0), column(1), column(2)};
}

Result<std::optional<ledger::NodeId>> PostgresLedgerStore::stray_node() {
  const std::lock_guard lock(reader_.mutex);
  if (Status status = reader_.connection->ensure(); !status) return status.error();
  auto rows = reader_.connection->query(
      "SELECT level, idx FROM fieldprint_nodes, fieldprint_ledger WHERE CASE WHEN level BETWEEN 0 AND 62 "
      "THEN idx < 0 OR idx >= size >> CAST(level AS integer) ELSE true END ORDER BY level, idx LIMIT 1",
      Arguments());
  if (!rows) return rows.error();
  if (rows->count() == 0) return std::optional<ledger::NodeId>();
  return std::optional<ledger::NodeId>(
      {static_cast<int>(rows->number(0, 0)), static_cast<std::uint64_t>(rows->number(0, 1))});
}

Result<std::vector<Bytes>> PostgresLedgerStore::leaves(std::uint64_t begin, std::uint64_t end) {
  const std::lock_guard lock(reader_.mutex);
  if (Status status = reader_.connection->ensure(); !status) return status.error();
  auto rows = reader_.connection->query(
      "SELECT idx, bytes FROM fieldprint_leaves WHERE idx >= $1 AND idx < $2 ORDER BY idx",
      Arguments().add(to_sql(begin)).add(to_sql(end)));
  if (!rows) return rows.error();
  std::vector<Bytes> found;
  for (int i = 0; i < rows->count() && std::cmp_equal(rows->number(i, 0), begin + found.size()); ++i) {
    const auto bytes = rows->bytes(i, 1);
    found.emplace_back(bytes.begin(), bytes.end());
  }
  return found;
}

Result<std::vector<Digest>> PostgresLedgerStore::nodes(int level, std::uint64_t begin, std::uint64_t end) {
  const std::lock_guard lock(reader_.mutex);
  if (Status status = reader_.connection->ensure(); !status) return status.error();
  auto rows = reader_.connection->query(
      "SELECT idx, hash FROM fieldprint_nodes WHERE level = $1 AND idx >= $2 AND idx < $3 ORDER BY idx",
      Arguments().add(std::int64_t{level}).add(to_sql(begin)).add(to_sql(end)));
  if (!rows) return rows.error();
  std::vector<Digest> found;
  for (int i = 0; i < rows->count() && std::cmp_equal(rows->number(i, 0), begin + found.size()); ++i) {
    Digest hash{};
    if (!to_digest(rows->bytes(i, 1), hash)) break;
    found.push_back(hash);
  }
  return found;
}

Result<std::vector<Digest>> PostgresLedgerStore::hashes(std::span<const ledger::NodeId> ids) {
  std::vector<Digest> found;
  if (ids.empty()) return found;
  const std::lock_guard lock(reader_.mutex);
  if (Status status = reader_.connection->ensure(); !status) return status.error();
  auto hashes = read_hashes(*reader_.connection, ids);
  if (!hashes) return hashes.error();
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (!(*hashes)[i]) return no_node(ids[i]);
    found.push_back(*(*hashes)[i]);
  }
  return found;
}

Result<std::optional<std::string>> PostgresLedgerStore::checkpoint() {
  const std::lock_guard lock(reader_.mutex);
  if (Status status = reader_.connection->ensure(); !status) return status.error();
  return read_last_checkpoint(*reader_.connection);
}

Result<std::vector<KeptCheckpoint>> PostgresLedgerStore::checkpoints(std::uint64_t from, int limit) {
  const std::lock_guard lock(reader_.mutex);
  if (Status status = reader_.connection->ensure(); !status) return status.error();
  return read_checkpoints(*reader_.connection, from, limit);
}

}  // namespace fieldprint::store
