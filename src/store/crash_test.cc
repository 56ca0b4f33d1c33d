// What a store has acknowledged survives kill -9 at any moment.

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <map>
#include <random>

#include "ledger/checkpoint.h"
#include "store/signed_log.h"
#include "store/sqlite_ledger_store.h"
#include "store/temporary_folder.h"

namespace fieldprint::store {
namespace {

using CrashTest = WithFolder;

// An acknowledged append: leaves [begin, end), which a leaf's bytes can be computed from, and the signed
// root.
struct Acknowledged {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  Digest root{};
};

Bytes leaf_of(std::uint64_t index) {
  const Digest seed = sha256(fmt::format("leaf {}", index));
  Bytes bytes;
  for (std::uint64_t i = 0; i <= index % 9; ++i) bytes.insert(bytes.end(), seed.begin(), seed.end());
  return bytes;
}

ledger::SignerKey signer() {
  return *ledger::SignerKey::make("crash", ledger::PrivateKey::from_seed(ledger::Seed{1}));
}

// Appends until killed and writes an Acknowledged to the pipe after each append.
[[noreturn]] void append_forever(const std::string& path, int pipe) {
  auto store = SqliteLedgerStore::open(path);
  if (!store) ::_exit(2);
  auto log = SignedLog::open(std::move(*store), signer());
  if (!log) ::_exit(3);
  const std::vector<ledger::VerifierKey> known = {(*log)->verifier()};
  while (true) {
    auto begin = (*log)->store().size();
    if (!begin) ::_exit(4);
    std::vector<Bytes> leaves;
    for (std::uint64_t i = 0; i <= *begin % 4; ++i) leaves.push_back(leaf_of(*begin + i));
    auto logged = (*log)->append(leaves);
    if (!logged) ::_exit(5);
    auto checkpoint = ledger::open_checkpoint(logged->front().checkpoint, known);
    if (!checkpoint) ::_exit(6);
    const Acknowledged ack = {*begin, checkpoint->size, checkpoint->root};
    if (::write(pipe, &ack, sizeof ack) != sizeof ack) ::_exit(7);
  }
}

// Lets a child append, kills it `delay` after its acknowledgement number `wait_for`, and gives all that it
// acknowledged.
std::vector<Acknowledged> run_and_kill(const std::string& path, std::size_t wait_for, useconds_t delay) {
  int ends[2] = {-1, -1};
  EXPECT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  EXPECT_GE(child, 0);
  if (child == 0) {
    ::close(ends[0]);
    append_forever(path, ends[1]);
  }
  ::close(ends[1]);
  std::vector<Acknowledged> acknowledged;
  Acknowledged ack;
  const auto next = [&] {
    if (::read(ends[0], &ack, sizeof ack) != sizeof ack) return false;
    acknowledged.push_back(ack);
    return true;
  };
  while (acknowledged.size() < wait_for && next()) {
  }
  ::usleep(delay);
  EXPECT_EQ(::kill(child, SIGKILL), 0);
  while (next()) {
  }
  ::close(ends[0]);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status)) << "the child ended by itself with " << WEXITSTATUS(status);
  return acknowledged;
}

TEST_F(CrashTest, NothingAcknowledgedIsLostWhenTheProcessIsKilled) {
  constexpr int kRounds = 80;
  std::mt19937 random(20);
  std::map<std::uint64_t, Digest> signed_roots;
  std::uint64_t acknowledged_size = 0;
  for (int round = 0; round < kRounds; ++round) {
    const auto acknowledged = run_and_kill(path(), random() % 4, static_cast<useconds_t>(random() % 8000));
    for (const Acknowledged& ack : acknowledged) {
      signed_roots[ack.end] = ack.root;
      acknowledged_size = std::max(acknowledged_size, ack.end);
    }
    auto store = SqliteLedgerStore::open(path());
    ASSERT_TRUE(store.ok()) << "round " << round << ": " << store.error().message;
    ASSERT_GE(*(*store)->size(), acknowledged_size) << "round " << round;
    for (const Acknowledged& ack : acknowledged) {
      for (std::uint64_t i = ack.begin; i < ack.end; ++i) ASSERT_EQ(*(*store)->leaf(i), leaf_of(i));
      ASSERT_EQ(*(*store)->root_at(ack.end), ack.root);
    }
  }
  auto store = SqliteLedgerStore::open(path());
  ASSERT_TRUE(store.ok());
  const Status audit = (*store)->audit();
  EXPECT_TRUE(audit.ok()) << audit.error().message;
  EXPECT_GT(signed_roots.size(), static_cast<std::size_t>(kRounds) / 2) << "the children hardly ran";
  for (const auto& [size, root] : signed_roots) EXPECT_EQ(*(*store)->root_at(size), root);
}

TEST_F(CrashTest, ALedgerKilledWhileItIsCreatedOpensAgain) {
  std::mt19937 random(7);
  for (int round = 0; round < 30; ++round) {
    const std::string fresh = path(fmt::format("{}.db", round));
    run_and_kill(fresh, 0, static_cast<useconds_t>(random() % 30000));
    auto store = SqliteLedgerStore::open(fresh);
    ASSERT_TRUE(store.ok()) << store.error().message;
    EXPECT_TRUE((*store)->audit().ok());
    EXPECT_TRUE((*store)->append(std::vector<Bytes>{leaf_of(1)}).ok());
  }
}

}  // namespace
}  // namespace fieldprint::store
