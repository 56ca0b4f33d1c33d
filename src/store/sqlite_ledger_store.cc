#include "store/sqlite_ledger_store.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/bounds.h"
#include "base/file.h"
#include "ledger/checkpoint.h"
#include "store/sqlite.h"

namespace fieldprint::store {
namespace {

using sqlite::Database;
using sqlite::Statement;
using sqlite::Transaction;
using sqlite::Use;

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

// Creates the schema in an empty database; refuses one that is not a ledger of this version.
Status prepare_schema(Database& database) {
  auto transaction = Transaction::begin(database);
  if (!transaction) return transaction.error();
  auto application = database.number("PRAGMA application_id");
  if (!application) return application.error();
  auto version = database.number("PRAGMA user_version");
  if (!version) return version.error();
  auto tables = database.number("SELECT count(*) FROM sqlite_schema");
  if (!tables) return tables.error();

  if (*application == 0 && *version == 0 && *tables == 0) {
    if (Status status = database.execute(kSchema); !status) return status;
    const std::string header =
        fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {}", kApplicationId, kSchemaVersion);
    if (Status status = database.execute(header.c_str()); !status) return status;
    return transaction->commit();
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
  auto mode = database.text("PRAGMA journal_mode = WAL");
  if (!mode) return mode.error();
  if (*mode != (in_memory ? "memory" : "wal")) {
    return environment_error(fmt::format(
        "cannot use {}: its file system offers no write-ahead log; put the ledger on a local disk",
        database.path()));
  }
  // FULL: the log is flushed at every commit, so that an acknowledged leaf survives a power cut.
  if (Status status = database.execute("PRAGMA synchronous = FULL"); !status) return status;
  if (options.max_file_bytes > 0) {
    auto page = database.number("PRAGMA page_size");
    if (!page) return page.error();
    const std::string limit =
        fmt::format("PRAGMA max_page_count = {}", std::max(options.max_file_bytes / *page, std::int64_t{1}));
    return database.execute(limit.c_str());
  }
  return {};
}

}  // namespace

struct SqliteLedgerStore::State {
  std::mutex mutex;
  Database database;
  Statement read_size, write_size, add_leaf, read_leaf, add_node, read_node, add_checkpoint, last_checkpoint;
  ledger::CompactTree tree;  // as of the last append by this object

  Error damaged(std::string_view what) const {
    return environment_error(
        fmt::format("the ledger {} is damaged: {}; restore it from a copy", database.path(), what));
  }

  Result<std::uint64_t> size() {
    Use query(read_size);
    auto row = query->step(database, "read");
    if (!row) return row.error();
    if (!*row || query->number(0) < 0) return damaged("it states no size");
    return static_cast<std::uint64_t>(query->number(0));
  }

  Result<Digest> node(ledger::NodeId id) {
    Use query(read_node);
    query->bind(id.level).bind(static_cast<std::int64_t>(id.index));
    auto row = query->step(database, "read");
    if (!row) return row.error();
    if (!*row)
      return caller_error(
          fmt::format("the ledger has no complete subtree {} at level {}", id.index, id.level));
    const Bytes bytes = query->blob(0);
    Digest hash{};
    if (bytes.size() != hash.size())
      return damaged(fmt::format("hash {} at level {} is cut", id.index, id.level));
    std::copy(bytes.begin(), bytes.end(), hash.begin());
    return hash;
  }

  ledger::NodeReader reader() {
    return [this](ledger::NodeId id) { return node(id); };
  }

  Result<Bytes> leaf(std::uint64_t index) {
    Use query(read_leaf);
    query->bind(static_cast<std::int64_t>(index));
    auto row = query->step(database, "read");
    if (!row) return row.error();
    if (!*row) return caller_error(fmt::format("the ledger has no leaf {}", index));
    return query->blob(0);
  }

  Result<std::optional<std::string>> checkpoint() {
    Use query(last_checkpoint);
    auto row = query->step(database, "read");
    if (!row) return row.error();
    if (!*row) return std::optional<std::string>();
    return std::optional<std::string>(query->text(0));
  }

  Status run(Use& statement, std::string_view doing) {
    auto row = statement->step(database, doing);
    if (!row) return row.error();
    return {};
  }

  Status insert(const Bytes& bytes, ledger::CompactTree& grown) {
    {
      Use add(add_leaf);
      add->bind(static_cast<std::int64_t>(grown.size())).bind(bytes);
      if (Status status = run(add, "append to"); !status) return status;
    }
    Status status;
    grown.append(ledger::leaf_hash(bytes), [&](ledger::NodeId id, const Digest& hash) {
      if (!status) return;
      Use add(add_node);
      add->bind(id.level).bind(static_cast<std::int64_t>(id.index)).bind(hash);
      status = run(add, "append to");
    });
    return status;
  }

  // The checkpoint's size and root must be this ledger's.
  Status check_checkpoint(const ledger::Checkpoint& checkpoint) {
    auto now = size();
    if (!now) return now.error();
    if (checkpoint.size > *now) {
      return caller_error(
          fmt::format("the checkpoint states {} leaves, but the ledger has {}", checkpoint.size, *now));
    }
    auto root = ledger::root_at(checkpoint.size, reader());
    if (!root) return root.error();
    if (*root != checkpoint.root) {
      return caller_error(
          fmt::format("the checkpoint's root for {} leaves is not the ledger's", checkpoint.size));
    }
    return {};
  }

  // What is stated must fit together; audit() reads the rest.
  Status check_at_open() {
    const auto snapshot = Transaction::snapshot(database);
    if (!snapshot) return snapshot.error();
    auto stated = size();
    if (!stated) return stated.error();
    auto leaves = database.number("SELECT coalesce(max(idx) + 1, 0) FROM leaves");
    if (!leaves) return leaves.error();
    auto hashes = database.number("SELECT coalesce(max(idx) + 1, 0) FROM nodes WHERE level = 0");
    if (!hashes) return hashes.error();
    if (std::cmp_not_equal(*leaves, *stated) || std::cmp_not_equal(*hashes, *stated)) {
      return damaged(fmt::format("it states {} leaves, but holds {} leaves and {} leaf hashes", *stated,
                                 *leaves, *hashes));
    }
    auto loaded = ledger::CompactTree::load(*stated, reader());
    if (!loaded) return damaged(loaded.error().message);
    tree = std::move(*loaded);

    auto note = checkpoint();
    if (!note) return note.error();
    if (!*note) return {};
    auto parsed = ledger::parse_note(**note);
    if (!parsed) return damaged(parsed.error().message);
    auto last = ledger::parse_checkpoint(parsed->text);
    if (!last) return damaged(last.error().message);
    if (Status status = check_checkpoint(*last); !status) {
      return status.error().kind == ErrorKind::kCaller ? damaged(status.error().message) : status.error();
    }
    return {};
  }
};

SqliteLedgerStore::SqliteLedgerStore(std::unique_ptr<State> state) : state_(std::move(state)) {}
SqliteLedgerStore::~SqliteLedgerStore() = default;

Result<std::unique_ptr<SqliteLedgerStore>> SqliteLedgerStore::open(const std::string& path,
                                                                   const SqliteOptions& options) {
  if (path.empty() || path.starts_with(':')) return caller_error("a ledger needs the path of a file");
  return open_database(path, options);
}

Result<std::unique_ptr<SqliteLedgerStore>> SqliteLedgerStore::open_in_memory() {
  return open_database(":memory:", {});
}

Result<std::unique_ptr<SqliteLedgerStore>> SqliteLedgerStore::open_database(const std::string& path,
                                                                            const SqliteOptions& options) {
  const bool in_memory = path == ":memory:";
  auto database = Database::open(path, options.busy_timeout_ms);
  if (!database) return database.error();
  // A foreign database must be refused before anything in it is changed.
  if (Status status = prepare_schema(*database); !status) return status.error();
  if (Status status = configure(*database, options, in_memory); !status) return status.error();
  if (!in_memory) {
    if (Status status = sync_folder_of(path); !status) return status.error();
  }
  constexpr std::string_view kStatements[] = {
      "SELECT size FROM tree",
      "UPDATE tree SET size = ?",
      "INSERT INTO leaves VALUES (?, ?)",
      "SELECT bytes FROM leaves WHERE idx = ?",
      "INSERT INTO nodes VALUES (?, ?, ?)",
      "SELECT hash FROM nodes WHERE level = ? AND idx = ?",
      "INSERT OR REPLACE INTO checkpoints VALUES (?, ?)",
      "SELECT note FROM checkpoints ORDER BY size DESC LIMIT 1",
  };
  std::vector<Statement> s;
  for (const std::string_view sql : kStatements) {
    auto statement = database->prepare(sql);
    if (!statement) return statement.error();
    s.push_back(std::move(*statement));
  }
  std::unique_ptr<State> state(new State{.mutex = {},
                                         .database = std::move(*database),
                                         .read_size = std::move(s[0]),
                                         .write_size = std::move(s[1]),
                                         .add_leaf = std::move(s[2]),
                                         .read_leaf = std::move(s[3]),
                                         .add_node = std::move(s[4]),
                                         .read_node = std::move(s[5]),
                                         .add_checkpoint = std::move(s[6]),
                                         .last_checkpoint = std::move(s[7]),
                                         .tree = {}});
  if (Status status = state->check_at_open(); !status) return status.error();
  return std::unique_ptr<SqliteLedgerStore>(new SqliteLedgerStore(std::move(state)));
}

Result<std::uint64_t> SqliteLedgerStore::append(std::span<const Bytes> leaves) {
  for (const Bytes& leaf : leaves) {
    if (std::cmp_greater(leaf.size(), bounds::kMaxLeafBytes)) {
      return caller_error(
          fmt::format("a leaf of {} bytes is over the limit of {}", leaf.size(), bounds::kMaxLeafBytes));
    }
  }
  const std::lock_guard lock(state_->mutex);
  auto transaction = Transaction::begin(state_->database);
  if (!transaction) return transaction.error();
  auto first = state_->size();
  if (!first) return first;
  ledger::CompactTree grown = state_->tree;
  if (grown.size() != *first) {  // another process has appended
    auto loaded = ledger::CompactTree::load(*first, state_->reader());
    if (!loaded) return state_->damaged(loaded.error().message);
    grown = std::move(*loaded);
  }
  for (const Bytes& leaf : leaves) {
    if (Status status = state_->insert(leaf, grown); !status) return status.error();
  }
  {
    Use update(state_->write_size);
    update->bind(static_cast<std::int64_t>(grown.size()));
    if (Status status = state_->run(update, "append to"); !status) return status.error();
  }
  if (Status status = transaction->commit(); !status) return status.error();
  state_->tree = std::move(grown);
  return *first;
}

Result<std::uint64_t> SqliteLedgerStore::size() {
  const std::lock_guard lock(state_->mutex);
  return state_->size();
}

Result<Bytes> SqliteLedgerStore::leaf(std::uint64_t index) {
  const std::lock_guard lock(state_->mutex);
  return state_->leaf(index);
}

Result<Digest> SqliteLedgerStore::node(ledger::NodeId id) {
  const std::lock_guard lock(state_->mutex);
  return state_->node(id);
}

Status SqliteLedgerStore::keep_checkpoint(std::string_view note) {
  auto parsed = ledger::parse_note(note);
  if (!parsed) return parsed.error();
  auto checkpoint = ledger::parse_checkpoint(parsed->text);
  if (!checkpoint) return checkpoint.error();

  const std::lock_guard lock(state_->mutex);
  auto transaction = Transaction::begin(state_->database);
  if (!transaction) return transaction.error();
  if (Status status = state_->check_checkpoint(*checkpoint); !status) return status;
  auto newest = state_->database.number("SELECT coalesce(max(size), 0) FROM checkpoints");
  if (!newest) return newest.error();
  if (std::cmp_less(checkpoint->size, *newest)) {
    return caller_error(fmt::format("the checkpoint states {} leaves, fewer than the last one's {}",
                                    checkpoint->size, *newest));
  }
  {
    Use add(state_->add_checkpoint);
    add->bind(static_cast<std::int64_t>(checkpoint->size)).bind(note);
    if (Status status = state_->run(add, "keep a checkpoint in"); !status) return status;
  }
  return transaction->commit();
}

Result<std::optional<std::string>> SqliteLedgerStore::checkpoint() {
  const std::lock_guard lock(state_->mutex);
  return state_->checkpoint();
}

Status SqliteLedgerStore::audit() {
  const std::lock_guard lock(state_->mutex);
  const auto snapshot = Transaction::snapshot(state_->database);
  if (!snapshot) return snapshot.error();
  auto total = state_->size();
  if (!total) return total.error();
  ledger::CompactTree recomputed;
  Status status;
  while (recomputed.size() < *total) {
    auto leaf = state_->leaf(recomputed.size());
    if (!leaf) {
      return leaf.error().kind == ErrorKind::kCaller
                 ? refuted(fmt::format("leaf {} of {} is missing", recomputed.size(), *total))
                 : leaf.error();
    }
    recomputed.append(ledger::leaf_hash(*leaf), [&](ledger::NodeId id, const Digest& hash) {
      auto stored = state_->node(id);
      if (status.ok() && (!stored || *stored != hash)) {
        status = refuted(
            fmt::format("the stored hash {} at level {} is not that of its leaves", id.index, id.level));
      }
    });
    if (!status) return status;
  }
  auto notes = state_->database.prepare("SELECT note FROM checkpoints ORDER BY size");
  if (!notes) return notes.error();
  while (true) {
    auto row = notes->step(state_->database, "read");
    if (!row) return row.error();
    if (!*row) return {};
    auto note = ledger::parse_note(notes->text(0));
    auto checkpoint = note ? ledger::parse_checkpoint(note->text) : Result<ledger::Checkpoint>(note.error());
    Status consistent = checkpoint ? state_->check_checkpoint(*checkpoint) : Status(checkpoint.error());
    if (!consistent && consistent.error().kind == ErrorKind::kCaller)
      return refuted(consistent.error().message);
    if (!consistent) return consistent;
  }
}

}  // namespace fieldprint::store
