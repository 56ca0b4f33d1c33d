#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>

#include "store/ledger_store.h"
#include "store/postgres.h"

namespace fieldprint::store {

struct PostgresOptions {
  // As in SqliteOptions.
  bool create = true;
  bool read_only = false;
  bool examine = false;

  bool reads_only() const { return read_only || examine; }
};

/// A ledger in a PostgreSQL database, in tables named fieldprint_*, which several processes and machines may
/// share: appends take turns by a row lock. Commits are synchronous; how durable the server's own flush is,
/// its settings fsync and full_page_writes say. Reads have a connection of their own, and so has, from the
/// first revision() on, the listening to announcements.
class PostgresLedgerStore final : public LedgerStore {
 public:
  /// Connects, creates the tables if there are none and that is asked for, and checks that what they state
  /// fits together.
  static Result<std::unique_ptr<PostgresLedgerStore>> open(const std::string& url,
                                                           const PostgresOptions& options = {});

  Result<ledger::Growth> grow(std::span<const LeafView> leaves, const Seal& seal) override;
  Status settle() override;
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
  const std::string& name() const override { return writer_.connection->name(); }

 private:
  struct Guarded {
    std::unique_ptr<postgres::Connection> connection;
    std::mutex mutex;
  };
  PostgresLedgerStore() = default;
  Status prepare_schema(const PostgresOptions& options);
  Result<std::uint64_t> lock_size();
  Status insert(std::span<const LeafView> leaves, const ledger::Growth& growth);
  Status put_checkpoint(std::uint64_t size, std::string_view note);

  Guarded writer_;
  Guarded reader_;
  Guarded listener_;  // without a connection until somebody follows
  std::string url_;
  std::atomic<std::uint64_t> grown_ = 0;  // by this object
  // How often others may have made it grow, and when it was last raised; guarded by the listener's mutex.
  std::uint64_t revision_ = 0;
  std::chrono::steady_clock::time_point raised_{};
  bool read_only_ = false;
  ledger::CompactTree tree_;  // as of the last append by this object; guarded by the writer's mutex
};

}  // namespace fieldprint::store
