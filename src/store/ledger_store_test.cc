// What holds for every store of ledgers.
#include "store/ledger_store.h"

#include <chrono>
#include <thread>

#include "ledger/cosignature.h"
#include "store/open_ledger.h"
#include "store/signed_log.h"
#include "store/stores_testing.h"

namespace fieldprint::store {
namespace {

class EveryStore : public StoreOfKind {};

std::vector<Bytes> leaves_of(std::uint64_t begin, std::uint64_t end) {
  std::vector<Bytes> leaves;
  for (std::uint64_t i = begin; i < end; ++i) leaves.push_back(leaf_of(i));
  return leaves;
}

TEST_P(EveryStore, LeavesHashesAndProofsAreThoseOfTheTree) {
  auto store = open();
  ledger::CompactTree tree;
  std::vector<Digest> roots = {tree.root()};
  EXPECT_EQ(*store->root_at(0), ledger::empty_root());
  for (std::uint64_t size = 0; size < 60;) {
    const std::uint64_t group = 1 + size % 7;
    ASSERT_EQ(*store->append(leaves_of(size, size + group)), size);
    for (std::uint64_t i = 0; i < group; ++i) {
      tree.append(ledger::leaf_hash(leaf_of(size++)));
      roots.push_back(tree.root());
    }
    ASSERT_EQ(*store->size(), size);
    EXPECT_EQ(*store->root_at(size), tree.root());
  }
  const std::uint64_t size = *store->size();
  for (std::uint64_t i = 0; i < size; ++i) {
    EXPECT_EQ(*store->leaf(i), leaf_of(i));
    EXPECT_EQ(*store->leaf_hash(i), ledger::leaf_hash(leaf_of(i)));
    const auto proof = *store->inclusion_proof(i, size);
    EXPECT_TRUE(ledger::verify_inclusion(*store->leaf_hash(i), i, size, proof, roots[size]).ok());
    if (i == 0) continue;
    const auto consistency = *store->consistency_proof(i, size);
    EXPECT_TRUE(ledger::verify_consistency(i, roots[i], size, roots[size], consistency).ok());
  }
  EXPECT_EQ(store->leaves(size - 2, size + 9)->size(), 2u);
  EXPECT_EQ(store->leaves(0, 9)->size(), 9u);
  EXPECT_EQ(store->nodes(1, 0, 1000)->size(), size / 2);
  EXPECT_TRUE(store->leaves(size, ~std::uint64_t{0})->empty());
  EXPECT_TRUE(store->audit().ok());
  EXPECT_EQ(store->leaf(size).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(store->leaf(~std::uint64_t{0}).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(store->node({1, size}).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(store->inclusion_proof(size, size).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(store->root_at(size + 1).error().kind, ErrorKind::kCaller);
}

TEST_P(EveryStore, KeepsEmptyAndLargestLeavesAndRefusesLargerOnes) {
  auto store = open();
  const std::vector<Bytes> leaves = {{}, Bytes(65535, 7), {0}};
  EXPECT_EQ(*store->append(leaves), 0u);
  EXPECT_EQ(*store->append({}), 3u);
  for (std::uint64_t i = 0; i < 3; ++i) EXPECT_EQ(*store->leaf(i), leaves[i]);
  const auto refused = store->append(std::vector<Bytes>{Bytes(65536)});
  EXPECT_EQ(refused.error().kind, ErrorKind::kCaller);
  EXPECT_NE(refused.error().message.find("65535"), std::string::npos);
  EXPECT_EQ(*store->size(), 3u);
  EXPECT_TRUE(store->audit().ok());
}

TEST_P(EveryStore, TheRevisionTellsThatTheLedgerHasGrown) {
  auto ours = open();
  auto theirs = open();
  for (std::uint64_t i = 0; i < 20; ++i) {
    const std::uint64_t before = *ours->revision();
    ASSERT_TRUE(ours->append(leaves_of(i, i + 1)).ok());
    EXPECT_NE(*ours->revision(), before);
  }
  const std::uint64_t before = *ours->revision();
  ASSERT_TRUE(theirs->append(leaves_of(20, 21)).ok());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (*ours->revision() == before && std::chrono::steady_clock::now() < deadline)
    std::this_thread::yield();
  EXPECT_NE(*ours->revision(), before);
  EXPECT_EQ(*ours->size(), 21u);
}

TEST_P(EveryStore, AFailingSealLeavesNothingBehind) {
  auto store = open();
  const Bytes bytes = leaf_of(0);
  const LeafView leaf = bytes;
  auto grown = store->grow({&leaf, 1},
                           [](const Growing&) -> Result<std::string> { return environment_error("no ink"); });
  EXPECT_EQ(grown.error().message, "no ink");
  EXPECT_EQ(*store->size(), 0u);
  EXPECT_EQ(*store->append(leaves_of(0, 3)), 0u);
  EXPECT_TRUE(store->audit().ok());
}

TEST_P(EveryStore, OpensAgainWithWhatWasThere) {
  ASSERT_TRUE(open()->append(leaves_of(0, 7)).ok());
  auto store = open();
  EXPECT_EQ(*store->append(leaves_of(7, 9)), 7u);
  EXPECT_TRUE(store->audit().ok());
}

TEST_P(EveryStore, TwoStoresAndManyThreadsShareOneLedger) {
  auto a = open();
  auto b = open();
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, store = t % 2 == 0 ? a.get() : b.get()] {
      for (std::uint64_t i = 0; i < 20; ++i) EXPECT_TRUE(store->append(leaves_of(i, i + 2)).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(*a->size(), 240u);
  EXPECT_EQ(*b->size(), 240u);
  EXPECT_TRUE(a->audit().ok());
}

TEST_P(EveryStore, KeepsOnlyCheckpointsOfThisLedgerAndNoOlderOnes) {
  auto store = open();
  ASSERT_TRUE(store->append(leaves_of(0, 5)).ok());
  EXPECT_FALSE(store->checkpoint()->has_value());
  const auto note = [&](std::uint64_t size, const Digest& root) {
    return *ledger::sign_checkpoint(size, root, test_signer());
  };
  EXPECT_TRUE(store->keep_checkpoint(note(3, *store->root_at(3))).ok());
  EXPECT_TRUE(store->keep_checkpoint(note(5, *store->root_at(5))).ok());
  EXPECT_EQ(store->keep_checkpoint(note(6, *store->root_at(5))).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(store->keep_checkpoint(note(5, *store->root_at(4))).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(store->keep_checkpoint(note(4, *store->root_at(4))).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(store->keep_checkpoint("no note").error().kind, ErrorKind::kCaller);
  EXPECT_TRUE(store->keep_checkpoint(note(3, *store->root_at(3))).ok()) << "kept already";
  EXPECT_EQ(**store->checkpoint(), note(5, *store->root_at(5)));
  EXPECT_EQ(**open()->checkpoint(), note(5, *store->root_at(5)));
  EXPECT_EQ(**store->checkpoint_at(3), note(3, *store->root_at(3)));
  EXPECT_FALSE(store->checkpoint_at(4)->has_value());
  EXPECT_EQ(store->checkpoints(0, 10)->size(), 2u);
  EXPECT_EQ(store->checkpoints(4, 10)->front().size, 5u);
  EXPECT_TRUE(store->audit().ok());
}

TEST_P(EveryStore, CosignaturesAreCheckedKeptAndHandedOut) {
  auto log = *SignedLog::open(open(), test_signer());
  const auto key = ledger::PrivateKey::from_seed(ledger::Seed{3});
  const auto witness =
      *ledger::VerifierKey::make("witness.example", key.public_key(), ledger::KeyType::kCosignature);
  const std::string empty = *log->checkpoint();
  EXPECT_EQ(read_checkpoint(empty)->size, 0u);
  ASSERT_TRUE(log->append(leaves_of(0, 4)).ok());
  const auto note = *ledger::parse_note(*log->checkpoint());
  ledger::SignedNote lines = note;
  lines.signatures = {ledger::cosign(note.text, witness, key, 1700000000)};
  const std::string answer = ledger::format_note(lines).substr(note.text.size() + 1);

  EXPECT_EQ(log->accept_cosignatures(answer, {}).error().kind, ErrorKind::kRefuted);
  lines.signatures[0].bytes[20] ^= 1;
  EXPECT_EQ(log->accept_cosignatures(ledger::format_note(lines), {&witness, 1}).error().kind,
            ErrorKind::kRefuted);
  auto accepted = log->accept_cosignatures(answer, {&witness, 1});
  ASSERT_TRUE(accepted.ok()) << accepted.error().message;
  EXPECT_EQ(*accepted, *log->checkpoint());
  EXPECT_EQ(ledger::parse_note(*accepted)->signatures.size(), 2u);
  EXPECT_TRUE(ledger::open_checkpoint(*accepted, {&log->verifier(), 1}).ok());

  // A witness may answer late: about a checkpoint that is not the last one any more.
  ASSERT_TRUE(log->append(leaves_of(4, 6)).ok());
  EXPECT_TRUE(log->accept_cosignatures(*accepted, {&witness, 1}).ok());
  const auto foreign = *ledger::sign_checkpoint(5, Digest{}, test_signer());
  EXPECT_EQ(log->accept_cosignatures(foreign, {&witness, 1}).error().kind, ErrorKind::kRefuted);
  EXPECT_TRUE(log->store().audit().ok());
}

TEST_P(EveryStore, ConcurrentAppendsShareTransactionsAndEachGetsItsProof) {
  auto log = *SignedLog::open(open(), test_signer());
  const std::vector<ledger::VerifierKey> known = {log->verifier()};
  constexpr std::uint64_t kThreads = 16;
  constexpr std::uint64_t kEach = 20;
  std::vector<std::vector<std::uint64_t>> places(kThreads);
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < kEach; ++i) {
        const std::uint64_t number = (t * kEach + i) * 3;
        const auto leaves = leaves_of(number, number + 1 + i % 3);
        auto logged = log->append(leaves);
        ASSERT_TRUE(logged.ok()) << logged.error().message;
        ASSERT_EQ(logged->size(), leaves.size());
        for (std::size_t k = 0; k < leaves.size(); ++k) {
          const LoggedLeaf& entry = (*logged)[k];
          ASSERT_EQ(entry.index, logged->front().index + k);
          const auto checkpoint = ledger::open_checkpoint(entry.checkpoint, known);
          ASSERT_TRUE(checkpoint.ok());
          ASSERT_EQ(checkpoint->size, entry.tree_size);
          ASSERT_TRUE(ledger::verify_inclusion(ledger::leaf_hash(leaves[k]), entry.index, entry.tree_size,
                                               entry.inclusion_proof, checkpoint->root)
                          .ok());
          places[t].push_back(entry.index);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<std::uint64_t> all;
  for (const auto& own : places) {
    EXPECT_TRUE(std::is_sorted(own.begin(), own.end()));
    all.insert(all.end(), own.begin(), own.end());
  }
  std::sort(all.begin(), all.end());
  ASSERT_EQ(all.size(), *log->store().size());
  for (std::uint64_t i = 0; i < all.size(); ++i) ASSERT_EQ(all[i], i);
  EXPECT_LT(log->store().checkpoints(0, 1 << 20)->size(), kThreads * kEach)
      << "no two appends shared a transaction";
  EXPECT_TRUE(log->store().audit().ok());
}

TEST_P(EveryStore, OneThreadsTooLargeLeafIsItsOwnMistake) {
  auto log = *SignedLog::open(open(), test_signer());
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, bad = t % 4 == 0] {
      for (int i = 0; i < 10; ++i) {
        const auto logged = log->append(std::vector<Bytes>{Bytes(bad ? 65536 : 100)});
        EXPECT_EQ(logged.ok(), !bad);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(*log->store().size(), 60u);
}

TEST_P(EveryStore, OnlyAppendingCreatesALedger) {
  for (const Access access : {Access::kRead, Access::kExamine, Access::kContinue, Access::kRead}) {
    const auto store = open_ledger(location(), access);
    ASSERT_FALSE(store.ok());
    EXPECT_EQ(store.error().kind, ErrorKind::kCaller);
    EXPECT_NE(store.error().message.find("there is no ledger"), std::string::npos) << store.error().message;
  }
  ASSERT_TRUE(open()->append(std::vector<Bytes>{leaf_of(0)}).ok());
  auto reading = *open_ledger(location(), Access::kRead);
  EXPECT_EQ(*reading->size(), 1u);
  EXPECT_EQ(reading->append(std::vector<Bytes>{leaf_of(1)}).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(*(*open_ledger(location(), Access::kContinue))->append(std::vector<Bytes>{leaf_of(1)}), 1u);
}

TEST_P(EveryStore, AnExaminedLedgerIsNotWritten) {
  ASSERT_TRUE(open()->append(leaves_of(0, 3)).ok());
  auto examined = open_ledger(location(), Access::kExamine);
  ASSERT_TRUE(examined.ok()) << examined.error().message;
  EXPECT_TRUE((*examined)->audit().ok());
  EXPECT_EQ((*examined)->append(leaves_of(3, 4)).error().kind, ErrorKind::kCaller);
  EXPECT_EQ(*(*examined)->size(), 3u);
}

INSTANTIATE_TEST_SUITE_P(Stores, EveryStore, ::testing::Values(Kind::kSqlite, Kind::kPostgres), kind_name);

}  // namespace
}  // namespace fieldprint::store
