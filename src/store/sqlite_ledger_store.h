#pragma once

#include <memory>
#include <string>

#include "store/ledger_store.h"

namespace fieldprint::store {

struct SqliteOptions {
  std::int64_t max_file_bytes = 0;  ///< an append that would make the database larger fails; 0 = no limit
  int busy_timeout_ms = 10000;      ///< how long to wait for another process's transaction
};

/// A ledger in one SQLite database: write-ahead log, synchronous=FULL. Several processes may open the same
/// file.
class SqliteLedgerStore final : public LedgerStore {
 public:
  /// Opens or creates the database and checks that what it states fits together: sizes, the tree's peaks, and
  /// the root of the last checkpoint. A file of another program or schema is the caller's error.
  static Result<std::unique_ptr<SqliteLedgerStore>> open(const std::string& path,
                                                         const SqliteOptions& options = {});
  /// A ledger that lives as long as the object.
  static Result<std::unique_ptr<SqliteLedgerStore>> open_in_memory();

  ~SqliteLedgerStore() override;

  Result<std::uint64_t> append(std::span<const Bytes> leaves) override;
  Result<std::uint64_t> size() override;
  Result<Bytes> leaf(std::uint64_t index) override;
  Result<Digest> node(ledger::NodeId id) override;
  Status keep_checkpoint(std::string_view note) override;
  Result<std::optional<std::string>> checkpoint() override;
  Status audit() override;

 private:
  struct State;
  explicit SqliteLedgerStore(std::unique_ptr<State> state);
  static Result<std::unique_ptr<SqliteLedgerStore>> open_database(const std::string& path,
                                                                  const SqliteOptions& options);
  std::unique_ptr<State> state_;
};

}  // namespace fieldprint::store
