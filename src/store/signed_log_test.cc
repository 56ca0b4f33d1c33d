#include "store/signed_log.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "ledger/merkle.h"
#include "store/failing_store_testing.h"
#include "store/sqlite_ledger_store.h"
#include "store/stores_testing.h"

namespace fieldprint::store {
namespace {

// An empty ledger that meets what nobody thought of when something is added.
class ThrowingStore final : public LedgerStore {
 public:
  Result<ledger::Growth> grow(std::span<const LeafView>, const Seal&) override {
    throw std::runtime_error("nobody thought of this");
  }
  Result<std::uint64_t> size() override { return std::uint64_t{0}; }
  Status settle() override { return {}; }
  Result<std::uint64_t> revision() override { return std::uint64_t{0}; }
  std::optional<std::uint64_t> glance() override { return 0; }
  Result<std::vector<Bytes>> leaves(std::uint64_t, std::uint64_t) override { return std::vector<Bytes>(); }
  Result<std::vector<Digest>> nodes(int, std::uint64_t, std::uint64_t) override {
    return std::vector<Digest>();
  }
  Result<std::vector<Digest>> hashes(std::span<const ledger::NodeId>) override {
    return std::vector<Digest>();
  }
  Status keep_checkpoint(std::string_view) override { return {}; }
  Result<std::optional<std::string>> checkpoint() override { return std::optional<std::string>(); }
  Result<std::vector<KeptCheckpoint>> checkpoints(std::uint64_t, int) override {
    return std::vector<KeptCheckpoint>();
  }
  Result<Extent> extent() override { return Extent(); }
  Result<std::optional<ledger::NodeId>> stray_node() override { return std::optional<ledger::NodeId>(); }
  const std::string& name() const override { return name_; }

 private:
  std::string name_ = "throwing";
};

TEST(SignedLogDeathTest, AnExceptionWhileCommittingStopsTheProcessAndStrandsNobody) {
  auto log = *SignedLog::open(std::make_unique<ThrowingStore>(), test_signer());
  EXPECT_DEATH((void)log->append(std::vector<Bytes>{leaf_of(0)}), "nobody thought of this");
}

// A log over a real store, whose answers a test takes away.
class UnsettledLog : public StoreOfKind {
 protected:
  void SetUp() override {
    StoreOfKind::SetUp();
    if (IsSkipped()) return;
    auto failing = std::make_unique<FailingStore>(open());
    store_ = failing.get();
    log_ = *SignedLog::open(std::move(failing), test_signer());
  }
  // The proofs and the checkpoint that came back are those of a ledger that holds these leaves there.
  void expect_logged(const std::vector<LoggedLeaf>& logged, const std::vector<Bytes>& leaves,
                     std::uint64_t first) {
    ASSERT_EQ(logged.size(), leaves.size());
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      const LoggedLeaf& one = logged[i];
      EXPECT_EQ(one.index, first + i);
      auto checkpoint = ledger::open_checkpoint(one.checkpoint, {&log_->verifier(), 1});
      ASSERT_TRUE(checkpoint.ok());
      EXPECT_EQ(checkpoint->size, one.tree_size);
      EXPECT_EQ(checkpoint->root, *log_->store().root_at(one.tree_size));
      EXPECT_TRUE(ledger::verify_inclusion(ledger::leaf_hash(leaves[i]), one.index, one.tree_size,
                                           one.inclusion_proof, checkpoint->root)
                      .ok());
    }
  }

  FailingStore* store_ = nullptr;
  std::unique_ptr<SignedLog> log_;
};

TEST_P(UnsettledLog, LeavesWhoseCommitWasNotAcknowledgedAreFoundAndNotAddedAgain) {
  const std::vector<Bytes> leaves = {leaf_of(1), leaf_of(2), leaf_of(3)};
  ASSERT_TRUE(log_->append(std::vector<Bytes>{leaf_of(0)}).ok());
  store_->fate = [] { return FailingStore::Fate::kLost; };
  SignedLog::Unsettled unsettled;
  ASSERT_FALSE(log_->append(leaves, unsettled).ok());
  EXPECT_EQ(unsettled, 1U);
  // While the ledger cannot be read it stays open what became of them.
  store_->unreadable = true;
  ASSERT_FALSE(log_->append(leaves, unsettled).ok());
  EXPECT_EQ(unsettled, 1U);
  store_->unreadable = false;
  // Others go on meanwhile, and the log signs what they do.
  store_->fate = [] { return FailingStore::Fate::kDone; };
  ASSERT_TRUE(log_->append(std::vector<Bytes>{leaf_of(4)}).ok());
  auto found = log_->append(leaves, unsettled);
  ASSERT_TRUE(found.ok()) << found.error().message;
  EXPECT_FALSE(unsettled);
  EXPECT_EQ(*log_->store().size(), 5U);
  expect_logged(*found, leaves, 1);
  EXPECT_TRUE(log_->append(std::vector<Bytes>{leaf_of(5)}).ok());
}

TEST_P(UnsettledLog, LeavesThatAreNotThereAreAddedOnce) {
  const std::vector<Bytes> leaves = {leaf_of(1), leaf_of(2)};
  store_->fate = [] { return FailingStore::Fate::kRefused; };
  SignedLog::Unsettled unsettled;
  ASSERT_FALSE(log_->append(leaves, unsettled).ok());
  store_->fate = [] { return FailingStore::Fate::kDone; };
  // Another's leaves are where they would be, the first of them the same.
  ASSERT_TRUE(log_->append(std::vector<Bytes>{leaf_of(1), leaf_of(7)}).ok());
  auto added = log_->append(leaves, unsettled);
  ASSERT_TRUE(added.ok()) << added.error().message;
  EXPECT_EQ(*log_->store().size(), 4U);
  expect_logged(*added, leaves, 2);
}

TEST_P(UnsettledLog, EachOfAGroupThatWasNotAcknowledgedFindsItsOwn) {
  std::atomic<int> attempts = 0;
  store_->fate = [&] { return attempts++ % 3 == 0 ? FailingStore::Fate::kDone : FailingStore::Fate::kLost; };
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < 10; ++i) {
        const std::vector<Bytes> leaves = {leaf_of(1000 * t + 2 * i), leaf_of(1000 * t + 2 * i + 1)};
        SignedLog::Unsettled unsettled;
        auto logged = log_->append(leaves, unsettled);
        while (!logged) logged = log_->append(leaves, unsettled);
        EXPECT_EQ(*log_->store().leaf((*logged)[0].index), leaves[0]);
        EXPECT_EQ(*log_->store().leaf((*logged)[1].index), leaves[1]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(attempts, 6);
  EXPECT_EQ(*log_->store().size(), 120U);
  EXPECT_TRUE(log_->store().audit().ok());
}

TEST_P(UnsettledLog, ALedgerThatWentBackIsNotTakenForOneThatHasTheLeaves) {
  ASSERT_TRUE(log_->append(std::vector<Bytes>{leaf_of(0)}).ok());
  SignedLog::Unsettled unsettled;
  store_->fate = [] { return FailingStore::Fate::kLost; };
  ASSERT_FALSE(log_->append(std::vector<Bytes>{leaf_of(1)}, unsettled).ok());
  // Another ledger by the same key that has the leaf at this place, after another one.
  auto other = std::make_unique<FailingStore>(*SqliteLedgerStore::open_in_memory());
  auto forged = *SignedLog::open(std::move(other), test_signer());
  ASSERT_TRUE(forged->append(std::vector<Bytes>{leaf_of(9), leaf_of(1)}).ok());
  store_->become(forged->store());
  auto refused = log_->append(std::vector<Bytes>{leaf_of(1)}, unsettled);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("does not continue"), std::string::npos) << refused.error().message;
}

INSTANTIATE_TEST_SUITE_P(Stores, UnsettledLog, ::testing::Values(Kind::kSqlite, Kind::kPostgres), kind_name);

}  // namespace
}  // namespace fieldprint::store
