#include "store/sqlite_ledger_store.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <utility>

#include "base/fault_point.h"
#include "base/file.h"
#include "store/sqlite_schema.h"

namespace fieldprint::store {

using sqlite::Database;
using sqlite::Statement;
using sqlite::Transaction;
using sqlite::Use;

namespace {

constexpr std::string_view kReading = "read";

// Indexes beyond SQLite's integers are in no ledger.
std::int64_t to_sql(std::uint64_t value) {
  return static_cast<std::int64_t>(std::min<std::uint64_t>(value, std::numeric_limits<std::int64_t>::max()));
}

bool to_digest(const Bytes& bytes, Digest& out) {
  if (bytes.size() != out.size()) return false;
  std::copy(bytes.begin(), bytes.end(), out.begin());
  return true;
}

constexpr char kExtent[] =
    "SELECT size, (SELECT coalesce(max(idx) + 1, 0) FROM leaves), "
    "(SELECT coalesce(max(idx) + 1, 0) FROM nodes WHERE level = 0) FROM tree";

constexpr std::string_view kStatements[] = {
    kExtent,
    "UPDATE tree SET size = ?",
    "INSERT INTO leaves VALUES (?, ?)",
    "SELECT idx, bytes FROM leaves WHERE idx >= ? AND idx < ? ORDER BY idx",
    "INSERT INTO nodes VALUES (?, ?, ?)",
    "SELECT idx, hash FROM nodes WHERE level = ? AND idx >= ? AND idx < ? ORDER BY idx",
    "SELECT hash FROM nodes WHERE level = ? AND idx = ?",
    "INSERT OR REPLACE INTO checkpoints VALUES (?, ?)",
    "SELECT size, note FROM checkpoints WHERE size >= ? ORDER BY size LIMIT ?",
    "SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1",
    "SELECT size FROM tree",
    "PRAGMA data_version",
};

}  // namespace

// One connection with its statements; its mutex guards both.
struct SqliteLedgerStore::Connection {
  std::mutex mutex = {};
  Database database;
  std::vector<Statement> statements;

  Statement& read_extent() { return statements[0]; }
  Statement& write_size() { return statements[1]; }
  Statement& add_leaf() { return statements[2]; }
  Statement& read_leaves() { return statements[3]; }
  Statement& add_node() { return statements[4]; }
  Statement& read_nodes() { return statements[5]; }
  Statement& read_node() { return statements[6]; }
  Statement& add_checkpoint() { return statements[7]; }
  Statement& read_checkpoints() { return statements[8]; }
  Statement& last_checkpoint() { return statements[9]; }
  Statement& read_size() { return statements[10]; }
  Statement& read_version() { return statements[11]; }

  Status run(Use& statement, std::string_view doing) {
    auto row = statement->step(database, doing);
    return row ? Status() : Status(row.error());
  }

  Error states_no_size() const {
    return environment_error(
        fmt::format("the ledger {} is damaged: it states no size; restore it from a copy", database.path()));
  }

  Result<std::uint64_t> size() {
    Use query(read_size());
    auto row = query->step(database, kReading);
    if (!row) return row.error();
    if (!*row || query->number(0) < 0) return states_no_size();
    return static_cast<std::uint64_t>(query->number(0));
  }

  // Nothing if there is none.
  Result<std::optional<Digest>> node(ledger::NodeId id) {
    Use query(read_node());
    query->bind(id.level).bind(to_sql(id.index));
    auto row = query->step(database, kReading);
    if (!row) return row.error();
    Digest hash{};
    if (!*row) return std::optional<Digest>();
    if (!to_digest(query->blob(0), hash)) {
      return environment_error(
          fmt::format("the ledger {} is damaged: hash {} at level {} is cut; restore it from a copy",
                      database.path(), id.index, id.level));
    }
    return std::optional(hash);
  }

  Status insert_leaves(std::span<const LeafView> leaves, std::uint64_t first) {
    for (const LeafView& leaf : leaves) {
      Use add(add_leaf());
      add->bind(to_sql(first++)).bind(leaf);
      if (Status status = run(add, "append to"); !status) return status;
    }
    return {};
  }

  Status insert_nodes(const ledger::Growth& growth) {
    for (int level = 0; level < 64 && !growth.completed(level).empty(); ++level) {
      std::uint64_t index = growth.old_size() >> level;
      for (const Digest& hash : growth.completed(level)) {
        Use add(add_node());
        add->bind(level).bind(to_sql(index++)).bind(hash);
        if (Status status = run(add, "append to"); !status) return status;
      }
    }
    return {};
  }

  Result<std::vector<KeptCheckpoint>> checkpoints(std::uint64_t from, int limit) {
    std::vector<KeptCheckpoint> kept;
    Use query(read_checkpoints());
    query->bind(to_sql(from)).bind(limit);
    while (true) {
      auto row = query->step(database, kReading);
      if (!row) return row.error();
      if (!*row) return kept;
      kept.push_back({static_cast<std::uint64_t>(query->number(0)), query->text(1)});
    }
  }

  // The last checkpoint, if there is one.
  Result<std::optional<std::string>> last() {
    Use query(last_checkpoint());
    auto row = query->step(database, kReading);
    if (!row) return row.error();
    return *row ? std::optional(query->text(0)) : std::nullopt;
  }

  // Puts a note in its place, or joins its signatures to those of the one that is there.
  Status put_checkpoint(std::uint64_t size, std::string_view note) {
    auto there = checkpoints(size, 1);
    if (!there) return there.error();
    std::optional<std::string> kept;
    if (!there->empty() && there->front().size == size) kept = std::move(there->front().note);
    auto merged = merge_notes(kept, note);
    if (!merged) return merged.error();
    Use add(add_checkpoint());
    add->bind(to_sql(size)).bind(std::string_view(*merged));
    return run(add, "keep a checkpoint in");
  }
};

SqliteLedgerStore::SqliteLedgerStore(std::unique_ptr<Connection> writer, std::unique_ptr<Connection> reader,
                                     const SqliteOptions& options)
    : writer_(std::move(writer)), reader_(std::move(reader)), read_only_(options.reads_only()) {}
SqliteLedgerStore::~SqliteLedgerStore() = default;

const std::string& SqliteLedgerStore::name() const { return writer_->database.path(); }

Result<std::unique_ptr<SqliteLedgerStore>> SqliteLedgerStore::open(const std::string& path,
                                                                   const SqliteOptions& options) {
  if (path.empty() || path.starts_with(':')) return caller_error("a ledger needs the path of a file");
  return open_database(path, options);
}

Result<std::unique_ptr<SqliteLedgerStore>> SqliteLedgerStore::open_in_memory() {
  return open_database(":memory:", {});
}

Result<std::unique_ptr<SqliteLedgerStore::Connection>> SqliteLedgerStore::connect(
    const std::string& path, const SqliteOptions& options) {
  const auto mode = options.follow         ? sqlite::Mode::kFollow
                    : options.reads_only() ? sqlite::Mode::kRead
                    : options.create       ? sqlite::Mode::kCreate
                                           : sqlite::Mode::kWrite;
  auto database = Database::open(path, options.busy_timeout_ms, mode);
  if (!database) return database.error();
  if (options.examine) database->examine();
  // A foreign database must be refused before anything in it is changed.
  if (Status status = sqlite::prepare_schema(*database, options); !status) return status.error();
  if (Status status = sqlite::configure(*database, options, path == ":memory:"); !status)
    return status.error();
  std::vector<Statement> statements;
  for (const std::string_view sql : kStatements) {
    auto statement = database->prepare(sql);
    if (!statement) return statement.error();
    statements.push_back(std::move(*statement));
  }
  return std::unique_ptr<Connection>(
      new Connection{.database = std::move(*database), .statements = std::move(statements)});
}

Result<std::unique_ptr<SqliteLedgerStore>> SqliteLedgerStore::open_database(const std::string& path,
                                                                            const SqliteOptions& options) {
  auto writer = connect(path, options);
  if (!writer) return writer.error();
  std::unique_ptr<Connection> second;
  if (path != ":memory:") {
    if (!options.reads_only()) {
      if (Status status = sync_folder_of(path); !status) return status.error();
    }
    auto reader = connect(path, options);
    if (!reader) return reader.error();
    second = std::move(*reader);
  }
  std::unique_ptr<SqliteLedgerStore> store(
      new SqliteLedgerStore(std::move(*writer), std::move(second), options));
  if (options.examine) return store;
  auto tree = store->check_state();
  if (!tree) return tree.error();
  store->tree_ = std::move(*tree);
  return store;
}

Result<ledger::Growth> SqliteLedgerStore::grow(std::span<const LeafView> leaves, const Seal& seal) {
  if (read_only_) return caller_error("this ledger was opened to be read; nothing may be added to it");
  if (Status status = check_leaves(leaves); !status) return status.error();
  const std::lock_guard lock(writer_->mutex);
  auto transaction = Transaction::begin(writer_->database);
  if (!transaction) return transaction.error();
  auto first = writer_->size();
  if (!first) return first.error();
  const ledger::NodeReader nodes = [this](ledger::NodeId id) -> Result<Digest> {
    auto hash = writer_->node(id);
    if (!hash) return hash.error();
    return *hash ? Result<Digest>(**hash) : Result<Digest>(no_node(id));
  };
  auto last = writer_->last();
  if (!last) return last.error();
  auto before = seal ? covered_tree(*first, *last, tree_, nodes) : load_tree(*first, nodes);
  if (!before) return before.error();
  if (Status status = FAULT_POINT("store.grow.before_write"); !status) return status.error();
  ledger::Growth growth(std::move(*before));
  for (const LeafView& leaf : leaves) growth.append(ledger::leaf_hash(leaf));
  if (Status status = writer_->insert_leaves(leaves, *first); !status) return status.error();
  if (Status status = writer_->insert_nodes(growth); !status) return status.error();
  {
    Use update(writer_->write_size());
    update->bind(to_sql(growth.size()));
    if (Status status = writer_->run(update, "append to"); !status) return status.error();
  }
  if (seal) {
    auto note = seal({std::move(*last), growth.size(), growth.root(), nodes});
    if (!note) return note.error();
    if (Status status = writer_->put_checkpoint(growth.size(), *note); !status) return status.error();
  }
  if (Status status = FAULT_POINT("store.grow.before_commit"); !status) return status.error();
  if (Status status = transaction->commit(); !status) return status.error();
  ++grown_;
  CRASH_POINT("store.grow.committed");
  tree_ = growth.tree();
  return growth;
}

Result<std::uint64_t> SqliteLedgerStore::size() {
  Connection& connection = reading();
  const std::lock_guard lock(connection.mutex);
  return connection.size();
}

Result<std::uint64_t> SqliteLedgerStore::revision() {
  if (auto known = glance()) return *known;
  const std::lock_guard lock(reader_->mutex);
  Use query(reader_->read_version());
  auto row = query->step(reader_->database, kReading);
  if (!row) return row.error();
  // Where the folder may not be written there may be no index, and none may be made.
  if (read_only_) return static_cast<std::uint64_t>(query->number(0));
  const volatile std::uint8_t* header = reader_->database.log_index_header();
  if (header == nullptr) return static_cast<std::uint64_t>(query->number(0));
  log_index_header_ = header;
  return revision_by(header);
}

// A ledger in memory grows by this object alone.
std::optional<std::uint64_t> SqliteLedgerStore::glance() {
  if (!reader_) return grown_;
  const volatile std::uint8_t* header = log_index_header_;
  if (header == nullptr) return std::nullopt;
  return revision_by(header);
}

// Every commit changes the header of the log's index, so that two looks at it that are alike need no
// transaction between them. What is read while it changes is another header than the next one.
std::uint64_t SqliteLedgerStore::revision_by(const volatile std::uint8_t* header) {
  const std::lock_guard lock(header_mutex_);
  std::array<std::uint8_t, sqlite::Database::kLogIndexHeaderBytes> now{};
  std::copy_n(header, now.size(), now.begin());
  if (now != seen_header_) ++revision_;
  seen_header_ = now;
  return revision_;
}

Result<Extent> SqliteLedgerStore::extent() {
  Connection& connection = reading();
  const std::lock_guard lock(connection.mutex);
  Use query(connection.read_extent());
  auto row = query->step(connection.database, kReading);
  if (!row) return row.error();
  if (!*row || query->number(0) < 0) return damaged("it states no size");
  const auto column = [&](int i) { return static_cast<std::uint64_t>(query->number(i)); };
  return Extent{column(0), column(1), column(2)};
}

Result<std::optional<ledger::NodeId>> SqliteLedgerStore::stray_node() {
  Connection& connection = reading();
  const std::lock_guard lock(connection.mutex);
  if (read_only_) {
    // For an audit, the parts of the file that no query has read, such as the list of its free pages.
    auto found = connection.database.text("PRAGMA integrity_check(1)");
    if (!found) return found.error();
    if (*found != "ok") return refuted(fmt::format("the database {} is damaged: {}", name(), *found));
  }
  auto query = connection.database.prepare(
      "SELECT level, idx FROM nodes, tree WHERE CASE WHEN level BETWEEN 0 AND 62 "
      "THEN idx < 0 OR idx >= size >> CAST(level AS integer) ELSE true END ORDER BY level, idx LIMIT 1");
  if (!query) return query.error();
  auto row = query->step(connection.database, kReading);
  if (!row) return row.error();
  if (!*row) return std::optional<ledger::NodeId>();
  return std::optional<ledger::NodeId>(
      {static_cast<int>(query->number(0)), static_cast<std::uint64_t>(query->number(1))});
}

Result<std::vector<Bytes>> SqliteLedgerStore::leaves(std::uint64_t begin, std::uint64_t end) {
  Connection& connection = reading();
  const std::lock_guard lock(connection.mutex);
  Use query(connection.read_leaves());
  query->bind(to_sql(begin)).bind(to_sql(end));
  std::vector<Bytes> found;
  while (true) {
    auto row = query->step(connection.database, kReading);
    if (!row) return row.error();
    const bool next = *row && std::cmp_equal(query->number(0), begin + found.size());
    if (!next) return found;
    found.push_back(query->blob(1));
  }
}

Result<std::vector<Digest>> SqliteLedgerStore::nodes(int level, std::uint64_t begin, std::uint64_t end) {
  Connection& connection = reading();
  const std::lock_guard lock(connection.mutex);
  Use query(connection.read_nodes());
  query->bind(level).bind(to_sql(begin)).bind(to_sql(end));
  std::vector<Digest> found;
  while (true) {
    auto row = query->step(connection.database, kReading);
    if (!row) return row.error();
    const bool next = *row && std::cmp_equal(query->number(0), begin + found.size());
    Digest hash{};
    // A hash of another length is none.
    if (!next || !to_digest(query->blob(1), hash)) return found;
    found.push_back(hash);
  }
}

Result<std::vector<Digest>> SqliteLedgerStore::hashes(std::span<const ledger::NodeId> ids) {
  Connection& connection = reading();
  const std::lock_guard lock(connection.mutex);
  std::vector<Digest> found;
  for (const ledger::NodeId id : ids) {
    auto hash = connection.node(id);
    if (!hash) return hash.error();
    if (!*hash) return no_node(id);
    found.push_back(**hash);
  }
  return found;
}

Status SqliteLedgerStore::keep_checkpoint(std::string_view note) {
  if (read_only_) return caller_error("this ledger was opened to be read; nothing may be added to it");
  auto checkpoint = read_checkpoint(note);
  if (!checkpoint) return checkpoint.error();
  const std::lock_guard lock(writer_->mutex);
  auto transaction = Transaction::begin(writer_->database);
  if (!transaction) return transaction.error();
  if (Status status = check_kept(*writer_, *checkpoint); !status) return status;
  if (Status status = writer_->put_checkpoint(checkpoint->size, note); !status) return status;
  if (Status status = FAULT_POINT("store.checkpoint.before_commit"); !status) return status;
  if (Status status = transaction->commit(); !status) return status;
  CRASH_POINT("store.checkpoint.committed");
  return {};
}

// Within a transaction of the connection that writes.
Status SqliteLedgerStore::check_kept(Connection& connection, const ledger::Checkpoint& checkpoint) {
  auto now = connection.size();
  if (!now) return now.error();
  if (checkpoint.size > *now) {
    return caller_error(
        fmt::format("the checkpoint states {} leaves, but the ledger has {}", checkpoint.size, *now));
  }
  auto root = ledger::root_at(checkpoint.size, [&](ledger::NodeId id) -> Result<Digest> {
    auto hash = connection.node(id);
    if (!hash) return hash.error();
    return *hash ? Result<Digest>(**hash) : Result<Digest>(no_node(id));
  });
  if (!root) return root.error();
  if (*root != checkpoint.root) {
    return caller_error(
        fmt::format("the checkpoint's root for {} leaves is not the ledger's", checkpoint.size));
  }
  auto later = connection.checkpoints(checkpoint.size, 1);
  if (!later) return later.error();
  if (later->empty() || later->front().size == checkpoint.size) return {};
  return caller_error(
      fmt::format("the checkpoint states {} leaves, fewer than the last one's", checkpoint.size));
}

Result<std::optional<std::string>> SqliteLedgerStore::checkpoint() {
  Connection& connection = reading();
  const std::lock_guard lock(connection.mutex);
  return connection.last();
}

Result<std::vector<KeptCheckpoint>> SqliteLedgerStore::checkpoints(std::uint64_t from, int limit) {
  Connection& connection = reading();
  const std::lock_guard lock(connection.mutex);
  return connection.checkpoints(from, limit);
}

}  // namespace fieldprint::store
