#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>

#include "store/ledger_store.h"
#include "store/sqlite.h"

namespace fieldprint::store {

struct SqliteOptions {
  std::int64_t max_file_bytes = 0;  ///< an append that would make the database larger fails; 0 = no limit
  int busy_timeout_ms = 10000;      ///< how long to wait for another process's transaction
  bool create = true;               ///< a ledger that is not there begins
  bool read_only = false;           ///< nothing is created or written, and every append fails
  bool follow = false;              ///< read only, and sees what others append while it is open
  /// For an audit, read only too: what the ledger states is not checked, and damage is refuted instead of an
  /// environment error.
  bool examine = false;

  bool reads_only() const { return read_only || follow || examine; }
};

/// A ledger in one SQLite database: write-ahead log, synchronous=FULL. Several processes may open the same
/// file. Reads have a connection of their own and do not wait for a commit.
class SqliteLedgerStore final : public LedgerStore {
 public:
  /// Opens or creates the database and checks that what it states fits together: sizes, the tree's peaks, and
  /// the root of the last checkpoint. A file of another program or schema is the caller's error.
  static Result<std::unique_ptr<SqliteLedgerStore>> open(const std::string& path,
                                                         const SqliteOptions& options = {});
  /// A ledger that lives as long as the object.
  static Result<std::unique_ptr<SqliteLedgerStore>> open_in_memory();

  ~SqliteLedgerStore() override;

  Result<ledger::Growth> grow(std::span<const LeafView> leaves, const Seal& seal) override;
  Status settle() override { return {}; }  // a commit that fails is rolled back before it returns
  Result<std::uint64_t> size() override;
  Result<std::uint64_t> revision() override;
  std::optional<std::uint64_t> glance() override;
  Result<std::vector<Bytes>> leaves(std::uint64_t begin, std::uint64_t end) override;
  Result<std::vector<Digest>> nodes(int level, std::uint64_t begin, std::uint64_t end) override;
  Result<std::vector<Digest>> hashes(std::span<const ledger::NodeId> ids) override;
  Status keep_checkpoint(std::string_view note) override;
  Result<std::optional<std::string>> checkpoint() override;
  Result<std::vector<KeptCheckpoint>> checkpoints(std::uint64_t from, int limit) override;
  Result<Extent> extent() override;
  Result<std::optional<ledger::NodeId>> stray_node() override;
  const std::string& name() const override;

 private:
  struct Connection;
  SqliteLedgerStore(std::unique_ptr<Connection> writer, std::unique_ptr<Connection> reader,
                    const SqliteOptions& options);
  static Result<std::unique_ptr<SqliteLedgerStore>> open_database(const std::string& path,
                                                                  const SqliteOptions& options);
  static Result<std::unique_ptr<Connection>> connect(const std::string& path, const SqliteOptions& options);
  Connection& reading() { return reader_ ? *reader_ : *writer_; }
  Status check_kept(Connection& connection, const ledger::Checkpoint& checkpoint);
  std::uint64_t revision_by(const volatile std::uint8_t* header);

  std::unique_ptr<Connection> writer_;
  std::unique_ptr<Connection> reader_;  // none for a database in memory
  bool read_only_;
  std::atomic<std::uint64_t> grown_ = 0;  // how often, by this object
  // The header of the log's index, where there is one; what was seen of it last, and how often it was
  // another.
  std::atomic<const volatile std::uint8_t*> log_index_header_ = nullptr;
  std::mutex header_mutex_;  // guards the next two; nothing is waited for under it
  std::array<std::uint8_t, sqlite::Database::kLogIndexHeaderBytes> seen_header_{};
  std::uint64_t revision_ = 0;
  ledger::CompactTree tree_;  // as of the last append by this object; guarded by the writer's mutex
};

}  // namespace fieldprint::store
