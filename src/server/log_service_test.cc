#include "server/log_service.h"

#include <gtest/gtest.h>
#include <httplib.h>
#include <sqlite3.h>

#include <atomic>
#include <filesystem>
#include <mutex>
#include <thread>

#include "base/bounds.h"
#include "ledger/checkpoint.h"
#include "ledger/cosignature.h"
#include "ledger/tlog_proof.h"
#include "server/serving_testing.h"
#include "store/signed_log.h"
#include "store/stores_testing.h"
#include "store/tile_export.h"

namespace fieldprint::server {
namespace {

using store::Access;
using store::test_signer;

std::vector<store::Bytes> leaves_from(std::uint64_t first, std::uint64_t count) {
  std::vector<store::Bytes> leaves;
  for (std::uint64_t i = 0; i < count; ++i) leaves.push_back(store::leaf_of(first + i));
  return leaves;
}

/// A log that grows, and a server that follows it.
class ServedLog : public store::StoreOfKind {
 protected:
  void SetUp() override {
    StoreOfKind::SetUp();
    if (IsSkipped()) return;
    log_ = *store::SignedLog::open(open(), test_signer());
    begin_serving();
  }
  void TearDown() override {
    serving_.reset();
    service_.reset();
    log_.reset();
  }

  void begin_serving() {
    auto store = store::open_ledger(location(), Access::kFollow);
    ASSERT_TRUE(store.ok()) << store.error().message;
    service_ = std::make_unique<LogService>(std::move(*store), [this](std::string_view said) {
      const std::lock_guard lock(mutex_);
      told_ += said;
    });
    serving_ =
        std::make_unique<Serving>([this](const HttpRequest& request) { return service_->answer(request); });
  }

  void append(std::uint64_t count) {
    const auto leaves = leaves_from(size_, count);
    ASSERT_TRUE(log_->append(leaves).ok());
    size_ += count;
  }

  httplib::Response get(const std::string& path, const httplib::Headers& headers = {}) {
    auto got = serving_->client().Get(path, headers);
    EXPECT_TRUE(got) << path;
    return got ? *got : httplib::Response();
  }

  std::string told() {
    const std::lock_guard lock(mutex_);
    return told_;
  }

  std::unique_ptr<store::SignedLog> log_;
  std::unique_ptr<LogService> service_;
  std::unique_ptr<Serving> serving_;
  std::uint64_t size_ = 0;

 private:
  std::mutex mutex_;
  std::string told_;
};
INSTANTIATE_TEST_SUITE_P(Stores, ServedLog, ::testing::Values(store::Kind::kSqlite, store::Kind::kPostgres),
                         store::kind_name);

TEST_P(ServedLog, EveryTileIsThatOfTheTreeAndOthersAreNotThere) {
  EXPECT_EQ(get("/checkpoint").status, 404);
  append(200);
  append(500);
  const auto note = get("/checkpoint");
  EXPECT_EQ(note.get_header_value("Content-Type"), "text/plain; charset=utf-8");
  EXPECT_EQ(note.get_header_value("Cache-Control"), "no-cache");
  const std::vector<ledger::VerifierKey> keys = {test_signer().verifier()};
  auto checkpoint = ledger::open_checkpoint(note.body, keys);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  EXPECT_EQ(checkpoint->size, 700u);
  int tiles = 0;
  for (const std::uint64_t size : {200u, 700u}) {
    ASSERT_TRUE(ledger::for_each_new_tile(0, size, [&](const ledger::Tile& tile) -> Status {
                  const auto got = get("/" + ledger::tile_path(tile));
                  EXPECT_EQ(got.status, 200) << ledger::tile_path(tile);
                  EXPECT_EQ(got.get_header_value("Content-Type"), "application/octet-stream");
                  EXPECT_EQ(got.get_header_value("Cache-Control"), "public, max-age=31536000, immutable");
                  const auto bytes = store::read_tile(log_->store(), tile).value();
                  EXPECT_EQ(got.body, std::string(bytes.begin(), bytes.end()));
                  ++tiles;
                  return {};
                }).ok());
  }
  EXPECT_EQ(tiles, 2 + 7);
  for (const char* path :
       {"/tile/0/002.p/189", "/tile/0/002", "/tile/0/003.p/1", "/tile/1/000", "/tile/1/000.p/3",
        "/tile/2/000.p/1", "/tile/entries/002.p/189", "/tile/entries/003", "/tile/63/x999/999",
        "/tile/0/x018/x446/x744/x073/x709/551.p/1", "/", "/tile", "/x", "/tile/0/000.p/256", "/proof/700",
        "/proof/18446744073709551615", "/checkpoint?a=b"}) {
    const auto got = get(path);
    EXPECT_EQ(got.status, 404) << path;
    EXPECT_EQ(got.get_header_value("Cache-Control"), "no-store") << path;
  }
  EXPECT_EQ(told(), "");
}

TEST_P(ServedLog, ProofsOfRecordsHoldOffline) {
  append(300);
  append(77);
  for (const std::uint64_t record : {0u, 255u, 256u, 376u}) {
    const auto got = get("/proof/" + std::to_string(record));
    EXPECT_EQ(got.status, 200);
    auto proof = ledger::parse_tlog_proof(got.body);
    ASSERT_TRUE(proof.ok());
    EXPECT_EQ(proof->index, record);
    const Digest leaf = ledger::leaf_hash(store::leaf_of(record));
    EXPECT_TRUE(ledger::verify_tlog_proof(*proof, leaf, {{test_signer().verifier()}, {}, 0}).ok());
  }
}

TEST_P(ServedLog, TheServedHeadFollowsTheWriterCosignaturesIncluded) {
  append(5);
  const auto first = get("/checkpoint");
  const std::string tag = first.get_header_value("ETag");
  EXPECT_EQ(get("/checkpoint", {{"If-None-Match", tag}}).status, 304);
  append(251);
  const auto second = get("/checkpoint", {{"If-None-Match", tag}});
  EXPECT_EQ(second.status, 200);
  EXPECT_NE(second.body, first.body);
  EXPECT_EQ(get("/tile/0/000").status, 200);
  EXPECT_EQ(get("/tile/1/000.p/1").status, 200);

  const auto key = ledger::PrivateKey::from_seed(ledger::Seed{9});
  const auto witness =
      *ledger::VerifierKey::make("witness.example/w", key.public_key(), ledger::KeyType::kCosignature);
  auto note = *ledger::parse_note(second.body);
  note.signatures = {ledger::cosign(note.text, witness, key, 1700000000)};
  ASSERT_TRUE(log_->accept_cosignatures(ledger::format_note(note), std::vector{witness}).ok());
  const auto third = get("/checkpoint");
  auto cosigned = ledger::cosignatures_of(*ledger::parse_note(third.body), std::vector{witness});
  ASSERT_TRUE(cosigned.ok());
  EXPECT_EQ(cosigned->size(), 1u);
  EXPECT_TRUE(third.body.starts_with(second.body));
}

TEST_P(ServedLog, EntriesAreCompressedForWhoTakesThat) {
  append(256);
  const auto plain = get("/tile/entries/000", {{"Accept-Encoding", "identity"}});
  EXPECT_FALSE(plain.has_header("Content-Encoding"));
  EXPECT_EQ(plain.get_header_value("Vary"), "Accept-Encoding");
  auto client = serving_->client();
  client.set_decompress(false);
  auto packed = client.Get("/tile/entries/000", {{"Accept-Encoding", "gzip"}});
  ASSERT_TRUE(packed);
  EXPECT_EQ(packed->get_header_value("Content-Encoding"), "gzip");
  EXPECT_LT(packed->body.size(), plain.body.size());
  EXPECT_NE(packed->get_header_value("ETag"), plain.get_header_value("ETag"));
  EXPECT_EQ(get("/tile/entries/000", {{"Accept-Encoding", "gzip"}}).body, plain.body);
  auto head = client.Head("/tile/entries/000", {{"Accept-Encoding", "gzip"}});
  ASSERT_TRUE(head);
  EXPECT_EQ(head->headers, packed->headers);
  EXPECT_FALSE(get("/tile/0/000", {{"Accept-Encoding", "gzip"}}).has_header("Content-Encoding"));
}

TEST_P(ServedLog, NotModifiedHasNeitherBodyNorLength) {
  append(3);
  const auto got = get("/tile/0/000.p/3");
  const auto again = get("/tile/0/000.p/3", {{"If-None-Match", "\"x\", " + got.get_header_value("ETag")}});
  EXPECT_EQ(again.status, 304);
  EXPECT_EQ(again.body, "");
  EXPECT_FALSE(again.has_header("Content-Length"));
  EXPECT_EQ(again.get_header_value("ETag"), got.get_header_value("ETag"));
}

TEST_P(ServedLog, OtherMethodsAreNotAllowed) {
  append(1);
  auto client = serving_->client();
  for (const auto& got :
       {client.Post("/checkpoint", "x", "text/plain"), client.Put("/tile/0/000", "x", "text/plain"),
        client.Delete("/checkpoint"), client.Options("/checkpoint")}) {
    ASSERT_TRUE(got);
    EXPECT_EQ(got->status, 405);
    EXPECT_EQ(got->get_header_value("Allow"), "GET, HEAD");
  }
}

TEST_P(ServedLog, ReadersBesideAWriterSeeOnlyWholeTrees) {
  append(1);
  std::atomic<bool> done{false};
  std::atomic<int> checks{0};
  std::vector<std::thread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&] {
      auto client = serving_->client();
      std::uint64_t seen = 0;
      while (!done) {
        auto note = client.Get("/checkpoint");
        ASSERT_TRUE(note);
        const auto checkpoint = *store::read_checkpoint(note->body);
        ASSERT_GE(checkpoint.size, seen);
        seen = checkpoint.size;
        // The root from leaf hashes in tiles alone.
        ledger::CompactTree tree;
        for (std::uint64_t first = 0; first < seen; first += ledger::kTileWidth) {
          const auto width = std::min<std::uint64_t>(seen - first, ledger::kTileWidth);
          auto tile = client.Get("/" + ledger::tile_path({false, 0, first / 256, static_cast<int>(width)}));
          ASSERT_TRUE(tile);
          ASSERT_EQ(tile->body.size(), width * 32);
          for (std::size_t at = 0; at < tile->body.size(); at += 32) {
            Digest hash;
            std::copy_n(tile->body.begin() + static_cast<std::ptrdiff_t>(at), 32, hash.begin());
            tree.append(hash);
          }
        }
        ASSERT_EQ(tree.root(), checkpoint.root);
        ++checks;
      }
    });
  }
  for (int i = 0; i < 60; ++i) append(static_cast<std::uint64_t>(1 + i * 7 % 40));
  while (checks < 5) std::this_thread::yield();
  done = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(told(), "");
}

TEST_P(ServedLog, AHeadThatDoesNotContinueTheServedOneIsNotServed) {
  if (GetParam() != store::Kind::kSqlite) GTEST_SKIP() << "alters a file";
  append(10);
  const auto served = get("/checkpoint");
  auto fork = *store::SignedLog::open(*store::open_ledger(path("fork.db"), Access::kAppend), test_signer());
  const std::vector<store::Bytes> other = leaves_from(1000, 20);
  ASSERT_TRUE(fork->append(other).ok());
  fork.reset();
  const std::string alter =
      "ATTACH '" + path("fork.db") +
      "' AS f; BEGIN IMMEDIATE; DELETE FROM main.leaves; DELETE FROM main.nodes; DELETE FROM "
      "main.checkpoints; INSERT INTO main.leaves SELECT * FROM f.leaves; INSERT INTO main.nodes "
      "SELECT * FROM f.nodes; INSERT INTO main.checkpoints SELECT * FROM f.checkpoints; UPDATE "
      "main.tree SET size = 20; COMMIT";
  sqlite3* database = nullptr;
  ASSERT_EQ(sqlite3_open(location().c_str(), &database), SQLITE_OK);
  char* message = nullptr;
  ASSERT_EQ(sqlite3_exec(database, alter.c_str(), nullptr, nullptr, &message), SQLITE_OK) << message;
  sqlite3_close(database);
  for (const char* path : {"/checkpoint", "/tile/0/000.p/3", "/proof/1", "/checkpoint"}) {
    const auto got = get(path);
    EXPECT_EQ(got.status, 503) << path;
    EXPECT_EQ(got.get_header_value("Retry-After"), "2");
    EXPECT_EQ(got.body.find(location()), std::string::npos);
  }
  const std::string once = location() + ": its tree of 10 records is not that of the checkpoint";
  EXPECT_EQ(told(), once);
}

TEST_P(ServedLog, ADatabaseThatDoesNotAnswerIsAPassingFailure) {
  if (GetParam() != store::Kind::kPostgres) GTEST_SKIP() << "ends a database server";
  append(10);
  EXPECT_EQ(get("/checkpoint").status, 200);
  std::string why;
  store::TemporaryPostgres* server = store::test_postgres(why);
  server->kill();
  for (const char* path : {"/checkpoint", "/tile/0/000.p/3", "/proof/1"}) {
    const auto got = get(path);
    EXPECT_EQ(got.status, 503) << path;
    EXPECT_EQ(got.get_header_value("Retry-After"), "2");
    EXPECT_EQ(got.get_header_value("Cache-Control"), "no-store");
  }
  EXPECT_EQ(get("/nothing").status, 404);
  ASSERT_TRUE(server->run());
  EXPECT_EQ(get("/checkpoint").status, 200);
  EXPECT_EQ(get("/tile/0/000.p/3").status, 200);
  EXPECT_NE(told().find("the ledger answers again"), std::string::npos) << told();
}

TEST_P(ServedLog, NothingIsWrittenAndNothingBegun) {
  if (GetParam() != store::Kind::kSqlite) GTEST_SKIP() << "about files";
  append(3);
  EXPECT_EQ(get("/tile/0/000.p/3").status, 200);
  auto reading = store::open_ledger(location(), Access::kFollow);
  ASSERT_TRUE(reading.ok());
  EXPECT_FALSE((*reading)->append(leaves_from(3, 1)).ok());
  EXPECT_FALSE(store::open_ledger(path("none.db"), Access::kFollow).ok());
  EXPECT_FALSE(std::filesystem::exists(path("none.db")));
}

}  // namespace
}  // namespace fieldprint::server
