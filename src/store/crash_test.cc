// What a store has acknowledged survives kill -9 at any moment: of the process that appends, in groups from
// many threads, and of the database server.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <map>
#include <random>
#include <thread>

#include "store/audit.h"
#include "store/signed_log.h"
#include "store/stores_testing.h"

namespace fieldprint::store {
namespace {

// An acknowledged leaf and the signed root over it. Small enough for a pipe to take it whole.
struct Acknowledged {
  std::uint64_t index = 0;
  std::uint64_t tree_size = 0;
  Digest leaf_hash{};
  Digest root{};
};

ledger::SignerKey signer() {
  return *ledger::SignerKey::make("crash", ledger::PrivateKey::from_seed(ledger::Seed{1}));
}

Bytes new_leaf(std::mt19937_64& random) {
  Bytes bytes(8 + random() % 300);
  for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}

// Appends one group after another and writes an Acknowledged for each leaf.
void append_forever(SignedLog& log, std::uint64_t seed, int pipe, int failure_exit) {
  std::mt19937_64 random(seed);
  const std::vector<ledger::VerifierKey> known = {log.verifier()};
  while (true) {
    std::vector<Bytes> leaves;
    for (std::uint64_t i = 0; i <= random() % 4; ++i) leaves.push_back(new_leaf(random));
    auto logged = log.append(leaves);
    if (!logged) ::_exit(failure_exit);
    auto checkpoint = ledger::open_checkpoint(logged->front().checkpoint, known);
    if (!checkpoint) ::_exit(6);
    for (std::size_t i = 0; i < leaves.size(); ++i) {
      const Acknowledged ack = {(*logged)[i].index, checkpoint->size, ledger::leaf_hash(leaves[i]),
                                checkpoint->root};
      if (::write(pipe, &ack, sizeof ack) != sizeof ack) ::_exit(7);
    }
  }
}

[[noreturn]] void append_from_threads(const std::string& location, int threads, std::uint64_t seed, int pipe,
                                      int failure_exit) {
  auto store = open_ledger(location, Access::kAppend);
  if (!store) ::_exit(2);
  auto log = SignedLog::open(std::move(*store), signer());
  if (!log) ::_exit(3);
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) {
    others.emplace_back(
        [&, t] { append_forever(**log, seed + static_cast<std::uint64_t>(t), pipe, failure_exit); });
  }
  append_forever(**log, seed, pipe, failure_exit);
  ::_exit(1);
}

// A process that appends, and what it has acknowledged.
class Appender {
 public:
  static constexpr int kStoreFailed = 5;

  Appender(const std::string& location, int threads, std::uint64_t seed) {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::pipe(ends), 0);
    child_ = ::fork();
    EXPECT_GE(child_, 0);
    if (child_ == 0) {
      ::close(ends[0]);
      append_from_threads(location, threads, seed, ends[1], kStoreFailed);
    }
    ::close(ends[1]);
    pipe_ = ends[0];
  }

  void wait_for(std::size_t acknowledgements) {
    while (acknowledged_.size() < acknowledgements && next()) {
    }
  }

  // Ends it, or finds it ended because its store failed, and gives all that it acknowledged.
  std::vector<Acknowledged> end(bool by_signal) {
    if (by_signal) {
      EXPECT_EQ(::kill(child_, SIGKILL), 0);
    }
    while (next()) {
    }
    ::close(pipe_);
    int status = 0;
    EXPECT_EQ(::waitpid(child_, &status, 0), child_);
    if (by_signal) {
      EXPECT_TRUE(WIFSIGNALED(status)) << "the child ended by itself with " << WEXITSTATUS(status);
    } else {
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == kStoreFailed) << status;
    }
    return acknowledged_;
  }

 private:
  bool next() {
    Acknowledged ack;
    if (::read(pipe_, &ack, sizeof ack) != sizeof ack) return false;
    acknowledged_.push_back(ack);
    return true;
  }

  pid_t child_ = -1;
  int pipe_ = -1;
  std::vector<Acknowledged> acknowledged_;
};

// Everything that was ever acknowledged, by all processes so far.
class Promises {
 public:
  void add(const std::vector<Acknowledged>& acknowledged) {
    for (const Acknowledged& ack : acknowledged) {
      const auto [place, fresh] = leaves_.emplace(ack.index, ack.leaf_hash);
      EXPECT_TRUE(fresh) << "leaf " << ack.index << " was given away twice";
      roots_[ack.tree_size] = ack.root;
    }
  }
  void check(LedgerStore& store) const {
    if (leaves_.empty()) return;
    ASSERT_GE(*store.size(), roots_.rbegin()->first);
    for (const auto& [index, hash] : leaves_) ASSERT_EQ(*store.leaf_hash(index), hash);
    for (const auto& [size, root] : roots_) ASSERT_EQ(*store.root_at(size), root);
  }
  std::size_t count() const { return leaves_.size(); }

 private:
  std::map<std::uint64_t, Digest> leaves_;
  std::map<std::uint64_t, Digest> roots_;
};

class CrashTest : public StoreOfKind {};

TEST_P(CrashTest, NothingAcknowledgedIsLostWhenTheProcessIsKilled) {
  const int rounds = GetParam() == Kind::kSqlite ? 80 : 20;
  std::mt19937 random(20);
  Promises promises;
  for (int round = 0; round < rounds; ++round) {
    Appender appender(location(), 1 + round % 2 * 7, 1000 * static_cast<std::uint64_t>(round));
    appender.wait_for(random() % 4 * 8);
    ::usleep(static_cast<useconds_t>(random() % 8000));
    promises.add(appender.end(true));
    auto store = open();
    ASSERT_NE(store, nullptr) << "round " << round;
    if (round % 10 == 9) promises.check(*store);
  }
  auto store = open();
  promises.check(*store);
  const ledger::VerifierKey key = signer().verifier();
  const auto audited = audit(*store, {.keys = {&key, 1}});
  ASSERT_TRUE(audited.ok()) << audited.error().message;
  EXPECT_EQ(audited->problem, "");
  EXPECT_GT(promises.count(), static_cast<std::size_t>(rounds)) << "the children hardly ran";
}

TEST_P(CrashTest, ALedgerKilledWhileItIsCreatedOpensAgain) {
  if (GetParam() == Kind::kPostgres) GTEST_SKIP() << "tables are created in one transaction of the server's";
  std::mt19937 random(7);
  for (int round = 0; round < 30; ++round) {
    const std::string fresh = path(fmt::format("{}.db", round));
    Appender appender(fresh, 1, 1);
    ::usleep(static_cast<useconds_t>(random() % 30000));
    appender.end(true);
    auto store = open_ledger(fresh, Access::kAppend);
    ASSERT_TRUE(store.ok()) << store.error().message;
    EXPECT_TRUE((*store)->audit().ok());
    EXPECT_TRUE((*store)->append(std::vector<Bytes>{leaf_of(1)}).ok());
  }
}

TEST_P(CrashTest, NothingAcknowledgedIsLostWhenTheServerIsKilled) {
  std::string why;
  if (GetParam() == Kind::kSqlite) GTEST_SKIP() << "SQLite has no server";
  TemporaryPostgres* server = test_postgres(why);
  std::mt19937 random(3);
  Promises promises;
  auto survivor = *SignedLog::open(open(), signer());
  ASSERT_TRUE(survivor->append(std::vector<Bytes>{leaf_of(0)}).ok());
  for (int round = 0; round < 4; ++round) {
    Appender appender(location(), 8, 1000 * static_cast<std::uint64_t>(round));
    appender.wait_for(60);
    ::usleep(static_cast<useconds_t>(random() % 20000));
    server->kill();
    promises.add(appender.end(false));
    // Without its server a store gives errors, and works again once there is one.
    EXPECT_EQ(survivor->append(std::vector<Bytes>{leaf_of(1)}).error().kind, ErrorKind::kEnvironment);
    EXPECT_EQ(survivor->store().size().error().kind, ErrorKind::kEnvironment);
    ASSERT_TRUE(server->run());
    const auto again = survivor->append(std::vector<Bytes>{leaf_of(2)});
    ASSERT_TRUE(again.ok()) << again.error().message;
    promises.check(survivor->store());
  }
  EXPECT_TRUE(survivor->store().audit().ok());
  EXPECT_GT(promises.count(), 240u);
}

INSTANTIATE_TEST_SUITE_P(Stores, CrashTest, ::testing::Values(Kind::kSqlite, Kind::kPostgres), kind_name);

}  // namespace
}  // namespace fieldprint::store
