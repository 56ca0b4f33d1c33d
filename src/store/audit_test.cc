#include "store/audit.h"

#include <sqlite3.h>

#include "store/postgres.h"
#include "store/signed_log.h"
#include "store/stores_testing.h"

namespace fieldprint::store {
namespace {

class AuditTest : public StoreOfKind {
 protected:
  // Changes the database behind the store's back. Tables have the same columns everywhere.
  void tamper(const std::string& sqlite, const std::string& postgres) const {
    if (GetParam() == Kind::kSqlite) {
      sqlite3* database = nullptr;
      ASSERT_EQ(sqlite3_open(location().c_str(), &database), SQLITE_OK);
      char* message = nullptr;
      ASSERT_EQ(sqlite3_exec(database, sqlite.c_str(), nullptr, nullptr, &message), SQLITE_OK) << message;
      sqlite3_close(database);
      return;
    }
    auto connection = postgres::Connection::open(location());
    ASSERT_TRUE(connection.ok());
    const Status status = (*connection)->execute(postgres.c_str());
    ASSERT_TRUE(status.ok()) << status.error().message;
  }

  Result<AuditReport> audited(const ledger::VerifierKey& key = test_signer().verifier()) const {
    auto store = open_ledger(location(), Access::kExamine);
    if (!store) return store.error();
    auto report = audit(**store, {.keys = {&key, 1}});
    if (!report || report->problem.empty()) return report;
    return refuted(report->problem);
  }

  // A ledger of 13 records with checkpoints for 5, 6, 12 and 13.
  void make() const {
    auto log = *SignedLog::open(open(), test_signer());
    std::uint64_t next = 0;
    for (const std::uint64_t count : {5, 1, 6, 1}) {
      std::vector<Bytes> leaves;
      for (std::uint64_t i = 0; i < count; ++i) leaves.push_back(leaf_of(next++));
      ASSERT_TRUE(log->append(leaves).ok());
    }
  }

  void clear() const {
    tamper("DELETE FROM leaves; DELETE FROM nodes; DELETE FROM checkpoints; UPDATE tree SET size = 0",
           "TRUNCATE fieldprint_leaves, fieldprint_nodes, fieldprint_checkpoints; UPDATE fieldprint_ledger "
           "SET size = 0");
  }

  // The same with another record 8, by somebody without the key: hashes fit, and there are no checkpoints.
  void rewrite() const {
    clear();
    std::vector<Bytes> leaves;
    for (std::uint64_t i = 0; i < 13; ++i) leaves.push_back(leaf_of(i == 8 ? 99 : i));
    ASSERT_TRUE(open()->append(leaves).ok());
  }

  // That records from `begin` on, which no signed checkpoint covers, pass nowhere and are not signed.
  void expect_uncovered(std::uint64_t begin, std::uint64_t end) const {
    auto report =
        audit(**open_ledger(location(), Access::kExamine), {.keys = {&test_signer().verifier(), 1}});
    ASSERT_TRUE(report.ok()) << report.error().message;
    EXPECT_NE(report->problem.find(fmt::format("no signed checkpoint covers more than {} records", begin)),
              std::string::npos)
        << report->problem;
    ASSERT_TRUE(report->first_wrong.has_value());
    EXPECT_EQ(report->first_wrong->begin, begin);
    EXPECT_EQ(report->first_wrong->end, end);
    const auto log = SignedLog::open(open(), test_signer());
    ASSERT_FALSE(log.ok());
    EXPECT_EQ(log.error().kind, ErrorKind::kEnvironment) << log.error().message;
  }
};

TEST_P(AuditTest, ASoundLedgerPassesAndItsRootIsGiven) {
  make();
  const auto report = audited();
  ASSERT_TRUE(report.ok()) << report.error().message;
  EXPECT_EQ(report->leaves, 13u);
  EXPECT_EQ(report->checkpoints, 4u);
  EXPECT_EQ(report->root, *open()->root_at(13));
}

TEST_P(AuditTest, NamesTheFirstRecordThatIsWrong) {
  struct Case {
    std::string change;  // with {} for the prefix of table names; x'..' becomes '\x..' for PostgreSQL
    std::string words;
  };
  const Case cases[] = {
      {"UPDATE {}leaves SET bytes = x'00' WHERE idx = 2 OR idx = 7", "record 2 of the ledger is wrong"},
      {"UPDATE {}leaves SET bytes = x'00' WHERE idx = 12", "record 12 of the ledger is wrong"},
      {"DELETE FROM {}leaves WHERE idx = 4", "record 4 of the ledger is wrong: it is missing"},
      {"DELETE FROM {}leaves WHERE idx = 12", "record 12 of the ledger is wrong: it is missing"},
      {"DELETE FROM {}leaves WHERE idx = 0", "record 0 of the ledger is wrong"},
      {"UPDATE {}nodes SET hash = x'00' WHERE level = 0 AND idx = 3", "record 3 of the ledger is wrong"},
      {"DELETE FROM {}nodes WHERE level = 0 AND idx = 3",
       "record 3 of the ledger is wrong: its leaf hash is missing"},
      {"DELETE FROM {}nodes WHERE level = 2 AND idx = 1",
       "one of the records 4 to 7 is wrong: the stored hash 1 at level 2 above them is missing"},
      {"UPDATE {}checkpoints SET note = x'00' WHERE size = 6", "the checkpoint kept for 6 records is wrong"},
      {"UPDATE {}checkpoints SET size = 7 WHERE size = 6",
       "the checkpoint kept for 7 records is wrong: it states 6"},
      {"INSERT INTO {}leaves VALUES (13, x'00')", "states 13 records, but holds 14"},
      {"INSERT INTO {}nodes VALUES (1, 6, x'00')", "the stored hash 6 at level 1 is of no subtree"},
      {"INSERT INTO {}nodes VALUES (4, 0, x'00')", "the stored hash 0 at level 4 is of no subtree"},
      {"INSERT INTO {}nodes VALUES (64, 0, x'00')", "the stored hash 0 at level 64 is of no subtree"},
      {"INSERT INTO {}nodes VALUES (-1, 0, x'00')", "the stored hash 0 at level -1 is of no subtree"},
  };
  const auto with = [](std::string text, const std::string& from, const std::string& to) {
    for (auto at = text.find(from); at != std::string::npos; at = text.find(from))
      text.replace(at, from.size(), to);
    return text;
  };
  make();
  for (const Case& c : cases) {
    clear();
    make();
    std::string for_sqlite = with(c.change, "{}", "");
    if (c.change.find("note = x'00'") != std::string::npos) for_sqlite = with(for_sqlite, "x'00'", "'x'");
    tamper(for_sqlite, with(with(c.change, "{}", "fieldprint_"), "x'00'", "'\\x00'"));
    const auto report = audited();
    ASSERT_FALSE(report.ok()) << c.change;
    EXPECT_EQ(report.error().kind, ErrorKind::kRefuted) << c.change;
    EXPECT_NE(report.error().message.find(c.words), std::string::npos)
        << c.change << ": " << report.error().message;
  }
}

TEST_P(AuditTest, ARewrittenHistoryIsFoundByItsCheckpoints) {
  make();
  // The forger has no key: the rewritten ledger keeps the checkpoints of the true one.
  auto kept = *open()->checkpoints(0, 100);
  rewrite();
  for (const KeptCheckpoint& checkpoint : kept) {
    const std::string hex =
        to_hex({reinterpret_cast<const std::uint8_t*>(checkpoint.note.data()), checkpoint.note.size()});
    tamper(fmt::format("INSERT INTO checkpoints VALUES ({}, CAST(x'{}' AS TEXT))", checkpoint.size, hex),
           fmt::format("INSERT INTO fieldprint_checkpoints VALUES ({}, '\\x{}')", checkpoint.size, hex));
  }
  const auto report = audited();
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message.find("one of the records 6 to 11 is wrong"), std::string::npos)
      << report.error().message;
  EXPECT_FALSE(open_ledger(location(), Access::kRead).ok());
}

TEST_P(AuditTest, ARewrittenHistoryWithoutCheckpointsIsNotSound) {
  make();
  rewrite();
  expect_uncovered(0, 13);
}

TEST_P(AuditTest, ARecordThatNoKeySignedIsNotSound) {
  make();
  auto log = *SignedLog::open(open(), test_signer());
  ASSERT_TRUE(open()->append(std::vector<Bytes>{leaf_of(13)}).ok());
  EXPECT_EQ(log->checkpoint().error().kind, ErrorKind::kEnvironment);
  expect_uncovered(13, 14);
}

TEST_P(AuditTest, AnOpenLogSignsNothingOverARecordThatSomebodyElsePutThere) {
  make();
  auto log = *SignedLog::open(open(), test_signer());
  ASSERT_TRUE(log->append(std::vector<Bytes>{leaf_of(13)}).ok());
  ASSERT_TRUE(open()->append(std::vector<Bytes>{leaf_of(14)}).ok());
  const auto logged = log->append(std::vector<Bytes>{leaf_of(15)});
  ASSERT_FALSE(logged.ok());
  EXPECT_EQ(logged.error().kind, ErrorKind::kEnvironment);
  EXPECT_NE(logged.error().message.find("has 15 records, but its last checkpoint covers 14"),
            std::string::npos)
      << logged.error().message;
  EXPECT_EQ(*open()->size(), 15u);
  expect_uncovered(14, 15);
}

TEST_P(AuditTest, AnOpenLogSignsNothingAfterACheckpointByAnotherKey) {
  make();
  auto log = *SignedLog::open(open(), test_signer());
  const auto other = *ledger::SignerKey::generate("example.com/ledger");
  const Bytes leaf = leaf_of(13);
  const LeafView view = leaf;
  ASSERT_TRUE(open()
                  ->grow({&view, 1},
                         [&](const Growing& growing) {
                           return ledger::sign_checkpoint(growing.size, growing.root, other);
                         })
                  .ok());
  const auto logged = log->append(std::vector<Bytes>{leaf_of(14)});
  ASSERT_FALSE(logged.ok());
  EXPECT_NE(logged.error().message.find("was not signed by"), std::string::npos) << logged.error().message;
  EXPECT_EQ(*open()->size(), 14u);
}

TEST_P(AuditTest, AnOpenLogNoticesThatTheLedgerWentBackOrIsAnother) {
  make();
  auto log = *SignedLog::open(open(), test_signer());
  // Another ledger by the same key, of as many records, one of them different; then one record less.
  for (const std::uint64_t size : {13, 12}) {
    clear();
    std::vector<Bytes> leaves;
    for (std::uint64_t i = 0; i < size; ++i) leaves.push_back(leaf_of(i == 8 ? 99 : i));
    ASSERT_TRUE((*SignedLog::open(open(), test_signer()))->append(leaves).ok());
    const auto logged = log->append(std::vector<Bytes>{leaf_of(13)});
    ASSERT_FALSE(logged.ok());
    EXPECT_EQ(logged.error().kind, ErrorKind::kEnvironment);
    EXPECT_NE(logged.error().message.find("does not continue the 13 records"), std::string::npos)
        << logged.error().message;
    EXPECT_EQ(*open()->size(), size);
  }
}

TEST_P(AuditTest, TwoLogsWithOneKeyGoOnAfterEachOther) {
  make();
  auto first = *SignedLog::open(open(), test_signer());
  auto second = *SignedLog::open(open(), test_signer());
  for (std::uint64_t i = 13; i < 21; ++i) {
    ASSERT_TRUE((i % 3 == 0 ? first : second)->append(std::vector<Bytes>{leaf_of(i)}).ok());
  }
  EXPECT_TRUE(audited().ok());
}

TEST_P(AuditTest, RecordsWhoseCheckpointsWereDroppedAreNotSound) {
  make();
  tamper("DELETE FROM checkpoints WHERE size > 6", "DELETE FROM fieldprint_checkpoints WHERE size > 6");
  expect_uncovered(6, 13);
}

TEST_P(AuditTest, CheckpointsByAnotherKeyAreWrong) {
  make();
  const auto other = *ledger::SignerKey::generate("example.com/ledger");
  const auto report = audited(other.verifier());
  ASSERT_FALSE(report.ok());
  EXPECT_NE(report.error().message.find("the checkpoint kept for 5 records is wrong"), std::string::npos);
}

TEST_P(AuditTest, APublishedCheckpointShowsThatRecordsAreGone) {
  make();
  const std::vector<std::string> published = {*SignedLog::open(open(), test_signer()).value()->checkpoint()};
  const auto key = test_signer().verifier();
  const auto against = [&] {
    auto report =
        audit(**open_ledger(location(), Access::kExamine), {.keys = {&key, 1}, .published = published});
    EXPECT_TRUE(report.ok());
    return *report;
  };
  EXPECT_TRUE(against().problem.empty());
  // A ledger cut back to an earlier state, checkpoints and all, is sound in itself.
  const std::string cut =
      "UPDATE {0} SET size = 5; DELETE FROM {1}leaves WHERE idx >= 5; DELETE FROM {1}checkpoints WHERE size "
      "> 5; "
      "DELETE FROM {1}nodes WHERE (idx + 1) * (CASE level WHEN 0 THEN 1 WHEN 1 THEN 2 WHEN 2 THEN 4 ELSE 8 "
      "END) > 5";
  tamper(fmt::format(fmt::runtime(cut), "tree", ""),
         fmt::format(fmt::runtime(cut), "fieldprint_ledger", "fieldprint_"));
  EXPECT_TRUE(audited().ok());
  const AuditReport report = against();
  EXPECT_NE(report.problem.find("one of the records 5 to 12 is wrong"), std::string::npos) << report.problem;
  ASSERT_TRUE(report.first_wrong.has_value());
  EXPECT_EQ(report.first_wrong->begin, 5u);
  EXPECT_EQ(report.first_wrong->end, 13u);
}

TEST_P(AuditTest, FindsADifferenceAnywhereInALargerLedger) {
  std::vector<Bytes> leaves;
  for (std::uint64_t i = 0; i < 5000; ++i) leaves.push_back(leaf_of(i, 1 + i % 50));
  ASSERT_TRUE((*SignedLog::open(open(), test_signer()))->append(leaves).ok());
  EXPECT_TRUE(audited().ok());
  for (const int index : {4999, 3000, 1024, 1023, 1}) {
    tamper(fmt::format("UPDATE leaves SET bytes = x'0102' WHERE idx = {}", index),
           fmt::format("UPDATE fieldprint_leaves SET bytes = '\\x0102' WHERE idx = {}", index));
    const auto report = audited();
    ASSERT_FALSE(report.ok());
    EXPECT_NE(report.error().message.find(fmt::format("record {} of the ledger is wrong", index)),
              std::string::npos)
        << report.error().message;
  }
}

INSTANTIATE_TEST_SUITE_P(Stores, AuditTest, ::testing::Values(Kind::kSqlite, Kind::kPostgres), kind_name);

}  // namespace
}  // namespace fieldprint::store
