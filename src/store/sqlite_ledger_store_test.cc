#include "store/sqlite_ledger_store.h"

#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <functional>

#include "ledger/checkpoint.h"
#include "store/ledger_folder_testing.h"
#include "store/signed_log.h"

namespace fieldprint::store {
namespace {

using StoreTest = WithFolder;

Bytes leaf_of(std::uint64_t i, std::size_t size = 40) {
  Bytes bytes(size);
  for (std::size_t k = 0; k < size; ++k) bytes[k] = static_cast<std::uint8_t>(i * 31 + k * 7 + (i >> 8));
  return bytes;
}

std::vector<Bytes> leaves_of(std::uint64_t begin, std::uint64_t end) {
  std::vector<Bytes> leaves;
  for (std::uint64_t i = begin; i < end; ++i) leaves.push_back(leaf_of(i));
  return leaves;
}

std::unique_ptr<SqliteLedgerStore> open(const std::string& path, const SqliteOptions& options = {}) {
  auto store = SqliteLedgerStore::open(path, options);
  EXPECT_TRUE(store.ok()) << store.error().message;
  return store.ok() ? std::move(*store) : nullptr;
}

// Changes the database behind the store's back.
void tamper(const std::string& path, const std::string& sql) {
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &database), SQLITE_OK);
  char* message = nullptr;
  ASSERT_EQ(sqlite3_exec(database, sql.c_str(), nullptr, nullptr, &message), SQLITE_OK) << message;
  sqlite3_close(database);
}

const ledger::SignerKey& signer() {
  static const ledger::SignerKey key =
      *ledger::SignerKey::make("example.com/ledger", ledger::PrivateKey::from_seed(ledger::Seed{7}));
  return key;
}

TEST_F(StoreTest, ALedgerInMemoryKeepsLeavesAndCheckpoints) {
  auto log = SignedLog::open(*SqliteLedgerStore::open_in_memory(), signer());
  ASSERT_TRUE(log.ok());
  for (std::uint64_t i = 0; i < 9; ++i) EXPECT_EQ((*log)->append(leaves_of(i, i + 1))->front().index, i);
  EXPECT_EQ(*(*log)->store().leaf(8), leaf_of(8));
  EXPECT_EQ((*log)->store().inclusion_proof(3, 9)->size(), 4u);
  EXPECT_EQ(read_checkpoint(*(*log)->checkpoint())->size, 9u);
  EXPECT_TRUE((*log)->store().keep_checkpoint(*(*log)->checkpoint()).ok());
  EXPECT_TRUE((*log)->store().audit().ok());
}

TEST_F(StoreTest, OpenRefusesADatabaseWhoseStatementsDisagree) {
  for (const std::string sql :
       {"UPDATE tree SET size = 8", "DELETE FROM tree", "DELETE FROM leaves WHERE idx = 6",
        "DELETE FROM nodes WHERE level = 0 AND idx = 6", "DELETE FROM nodes WHERE level = 2",
        "UPDATE nodes SET hash = zeroblob(32) WHERE level = 2",
        "UPDATE nodes SET hash = x'00' WHERE level = 1 AND idx = 2", "UPDATE checkpoints SET note = 'x'"}) {
    std::filesystem::remove(path());
    {
      auto store = open(path());
      ASSERT_TRUE(store->append(leaves_of(0, 7)).ok());
      ASSERT_TRUE(store->keep_checkpoint(*ledger::sign_checkpoint(7, *store->root_at(7), signer())).ok());
    }
    tamper(path(), sql);
    auto damaged = SqliteLedgerStore::open(path());
    ASSERT_FALSE(damaged.ok()) << sql;
    EXPECT_EQ(damaged.error().kind, ErrorKind::kEnvironment);
  }
}

TEST_F(StoreTest, RefusesForeignFilesWithoutChangingThem) {
  std::ofstream(path("text")) << std::string(4096, 'x');
  EXPECT_EQ(SqliteLedgerStore::open(path("text")).error().kind, ErrorKind::kCaller);
  tamper(path("other"), "CREATE TABLE t (x); PRAGMA application_id = 5");
  EXPECT_NE(SqliteLedgerStore::open(path("other")).error().message.find("another program"),
            std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(path("other-wal")));
  ASSERT_NE(open(path("newer")), nullptr);
  tamper(path("newer"), "PRAGMA user_version = 2");
  EXPECT_NE(SqliteLedgerStore::open(path("newer")).error().message.find("schema version 2"),
            std::string::npos);
  EXPECT_EQ(SqliteLedgerStore::open(path("none/ledger.db")).error().kind, ErrorKind::kCaller);
  EXPECT_FALSE(SqliteLedgerStore::open("").ok());
  EXPECT_FALSE(SqliteLedgerStore::open(":memory:").ok());
}

TEST_F(StoreTest, AFullDatabaseIsAnEnvironmentErrorAndLosesNothing) {
  const SqliteOptions small = {.max_file_bytes = 256 << 10};
  std::uint64_t kept = 0;
  {
    auto store = open(path(), small);
    Status status;
    while (status.ok()) {
      auto index = store->append(std::vector<Bytes>{leaf_of(kept, 3000), leaf_of(kept + 1, 3000)});
      if (index.ok()) {
        kept += 2;
      } else {
        status = index.error();
      }
      ASSERT_LT(kept, 1000u);
    }
    EXPECT_EQ(status.error().kind, ErrorKind::kEnvironment);
    EXPECT_NE(status.error().message.find("full"), std::string::npos) << status.error().message;
    EXPECT_GT(kept, 20u);
    EXPECT_EQ(*store->size(), kept);
    EXPECT_TRUE(store->audit().ok());
  }
  auto store = open(path());
  EXPECT_EQ(*store->size(), kept);
  EXPECT_EQ(*store->append(leaves_of(0, 2)), kept);
  EXPECT_TRUE(store->audit().ok());
}

TEST_F(StoreTest, AFailingDiskIsAnEnvironmentErrorAndLosesNothing) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {300 << 10, 300 << 10};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    auto store = SqliteLedgerStore::open(path());
    if (!store) ::_exit(1);
    for (std::uint64_t i = 0; i < 1000; ++i) {
      auto index = (*store)->append(std::vector<Bytes>{leaf_of(i, 3000)});
      if (index.ok()) continue;
      const bool clean = index.error().kind == ErrorKind::kEnvironment && *(*store)->size() == i && i > 5;
      ::_exit(clean ? 0 : 2);
    }
    ::_exit(3);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(open(path())->audit().ok());
}

TEST_F(StoreTest, AReadOnlyFileIsNamedAsSuch) {
  ASSERT_TRUE(open(path())->append(leaves_of(0, 2)).ok());
  ASSERT_EQ(::chmod(path().c_str(), 0444), 0);
  ASSERT_EQ(::chmod(folder().c_str(), 0555), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    // Permissions do not bind root.
    if (::geteuid() == 0 && ::seteuid(65534) != 0) ::_exit(4);
    auto store = SqliteLedgerStore::open(path());
    if (store.ok()) ::_exit(1);
    ::_exit(store.error().message.find("read-only") != std::string::npos ? 0 : 2);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  ASSERT_EQ(::chmod(folder().c_str(), 0755), 0);
}

TEST_F(StoreTest, AFolderThatMayNotBeWrittenCanBeReadAndAudited) {
  const std::string odd =
      path("a ledger?immutable=0&#%.db");  // no character of the name is taken for another
  ASSERT_TRUE(open(odd)->append(leaves_of(0, 9)).ok());
  ASSERT_EQ(::chmod(odd.c_str(), 0444), 0);
  ASSERT_EQ(::chmod(folder().c_str(), 0555), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (::geteuid() == 0 && ::seteuid(65534) != 0) ::_exit(4);
    auto read = SqliteLedgerStore::open(odd, {.read_only = true});
    if (!read || (*read)->size().value() != 9 || (*read)->append(leaves_of(0, 1)).ok()) ::_exit(1);
    auto examined = SqliteLedgerStore::open(odd, {.examine = true});
    ::_exit(examined && (*examined)->audit().ok() ? 0 : 2);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  ASSERT_EQ(::chmod(folder().c_str(), 0755), 0);
}

TEST_F(StoreTest, WhereNothingMayBeWrittenALedgerIsFollowedOnlyBesideItsWriter) {
  ASSERT_TRUE(open(path())->append(leaves_of(0, 9)).ok());
  // `meanwhile` runs here, again and again, until the other user is done: no thread may be there when it
  // forks.
  const auto as_other_user = [&](const std::function<bool()>& check, const std::function<void()>& meanwhile) {
    ASSERT_EQ(::chmod(folder().c_str(), 0555), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      if (::geteuid() == 0 && ::seteuid(65534) != 0) ::_exit(4);
      ::_exit(check() ? 0 : 1);
    }
    int status = 0;
    pid_t ended = 0;
    while ((ended = ::waitpid(child, &status, WNOHANG)) == 0) {
      meanwhile();
      ::usleep(1000);
    }
    ASSERT_EQ(ended, child);
    EXPECT_EQ(status, 0);
    ASSERT_EQ(::chmod(folder().c_str(), 0755), 0);
  };
  as_other_user(
      [&] {
        auto store = SqliteLedgerStore::open(path(), {.follow = true});
        return !store && store.error().message.find("no write-ahead log") != std::string::npos;
      },
      [] {});
  auto writer = open(path());
  ASSERT_TRUE(writer->append(leaves_of(9, 10)).ok());
  std::uint64_t size = 10;
  as_other_user(
      [&] {
        auto store = SqliteLedgerStore::open(path(), {.follow = true});
        if (!store || (*store)->append(leaves_of(0, 1)).ok()) return false;
        const std::uint64_t first = (*store)->size().value();
        for (int i = 0; i < 10'000; ++i) {
          if ((*store)->size().value() > first + 3) return true;
          ::usleep(1000);
        }
        return false;
      },
      [&] {
        EXPECT_TRUE(writer->append(leaves_of(size, size + 1)).ok());
        ++size;
      });
}

TEST_F(StoreTest, ALedgerWithALogBesideItIsReadWithWhatIsInTheLog) {
  auto writer = open(path());
  ASSERT_TRUE(writer->append(leaves_of(0, 9)).ok());
  auto reader = open(path(), {.read_only = true});
  EXPECT_EQ(*reader->size(), 9u);
  ASSERT_TRUE(writer->append(leaves_of(9, 12)).ok());
  EXPECT_EQ(*reader->size(), 12u);
  EXPECT_EQ(reader->keep_checkpoint("x").error().kind, ErrorKind::kCaller);
}

TEST_F(StoreTest, DamageToThePartsOfTheFileThatHoldNoRecordIsRefutedByAnAudit) {
  ASSERT_TRUE(open(path())->append(leaves_of(0, 9)).ok());
  {
    std::fstream file(path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(39);  // how many pages are free (sqlite.org/fileformat2.html)
    file.put('\x07');
  }
  auto examined = open(path(), {.examine = true});
  const Status status = examined->audit();
  ASSERT_FALSE(status.ok());
  EXPECT_NE(status.error().message.find("is damaged"), std::string::npos) << status.error().message;
}

TEST_F(StoreTest, AFileThatIsNoDatabaseAnyMoreIsRefutedByAnAudit) {
  ASSERT_TRUE(open(path())->append(leaves_of(0, 9)).ok());
  std::fstream(path(), std::ios::in | std::ios::out) << "no database";
  const auto examined = SqliteLedgerStore::open(path(), {.examine = true});
  ASSERT_FALSE(examined.ok());
  EXPECT_EQ(examined.error().kind, ErrorKind::kRefuted) << examined.error().message;
  EXPECT_EQ(SqliteLedgerStore::open(path()).error().kind, ErrorKind::kCaller);
}

TEST_F(StoreTest, ASignedLogHandsOutProofsUnderItsOwnCheckpoints) {
  auto log = SignedLog::open(open(path()), signer());
  ASSERT_TRUE(log.ok());
  const std::vector<ledger::VerifierKey> known = {(*log)->verifier()};
  for (std::uint64_t begin = 0; begin < 20; begin += 4) {
    const auto leaves = leaves_of(begin, begin + 4);
    auto logged = (*log)->append(leaves);
    ASSERT_TRUE(logged.ok()) << logged.error().message;
    ASSERT_EQ(logged->size(), 4u);
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      const LoggedLeaf& entry = (*logged)[i];
      EXPECT_EQ(entry.index, begin + i);
      auto checkpoint = ledger::open_checkpoint(entry.checkpoint, known);
      ASSERT_TRUE(checkpoint.ok());
      EXPECT_EQ(checkpoint->size, entry.tree_size);
      EXPECT_TRUE(ledger::verify_inclusion(ledger::leaf_hash(leaves[i]), entry.index, entry.tree_size,
                                           entry.inclusion_proof, checkpoint->root)
                      .ok());
    }
  }
  EXPECT_FALSE((*log)->append({}).ok());
  const auto other = *ledger::SignerKey::generate("example.com/ledger");
  auto refused = SignedLog::open(open(path()), other);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("use the key it began with"), std::string::npos);
  EXPECT_TRUE(SignedLog::open(open(path()), signer()).ok());
}

TEST_F(StoreTest, ALockedDatabaseIsAnEnvironmentError) {
  ASSERT_NE(open(path()), nullptr);
  sqlite3* holder = nullptr;
  ASSERT_EQ(sqlite3_open(path().c_str(), &holder), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(holder, "BEGIN EXCLUSIVE", nullptr, nullptr, nullptr), SQLITE_OK);
  auto store = SqliteLedgerStore::open(path(), {.busy_timeout_ms = 20});
  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.error().kind, ErrorKind::kEnvironment);
  EXPECT_NE(store.error().message.find("locked"), std::string::npos);
  sqlite3_close(holder);
}

}  // namespace
}  // namespace fieldprint::store
