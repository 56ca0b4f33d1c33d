#include "store/tile_export.h"

#include <sys/stat.h>

#include <fstream>
#include <map>

#include "base/file.h"
#include "store/signed_log.h"
#include "store/stores_testing.h"

namespace fieldprint::store {
namespace {

class TileExportTest : public WithFolder {
 protected:
  void SetUp() override {
    log_ = *SignedLog::open(*open_ledger(path(), Access::kAppend), test_signer());
    std::filesystem::create_directory(tiles());
  }
  void append(std::uint64_t count) {
    std::vector<Bytes> leaves;
    const std::uint64_t size = *log_->store().size();
    for (std::uint64_t i = size; i < size + count; ++i) leaves.push_back(leaf_of(i, i % 300));
    ASSERT_TRUE(log_->append(leaves).ok());
  }
  Result<Exported> run(std::uint64_t size = 0) {
    const std::string note = size == 0 ? *log_->checkpoint() : **log_->store().checkpoint_at(size);
    return export_tiles(log_->store(), note, tiles());
  }
  std::string tiles() const { return path("tiles"); }

  // Reads the log from its files alone, as a client would, and recomputes its root.
  void check_files(std::uint64_t size) const {
    std::map<std::pair<int, std::uint64_t>, Digest> hashes;
    ledger::CompactTree tree;
    ASSERT_TRUE(ledger::for_each_new_tile(0, size, [&](const ledger::Tile& tile) -> Status {
                  auto bytes = read_file(tiles() + "/" + ledger::tile_path(tile), 1 << 26);
                  if (!bytes) return bytes.error();
                  const auto first = tile.index * 256;
                  if (tile.entries) {
                    auto entries = ledger::decode_entries(*bytes, tile.width);
                    if (!entries) return entries.error();
                    for (const auto& entry : *entries) {
                      tree.append(ledger::leaf_hash(entry), [&](ledger::NodeId id, const Digest& hash) {
                        hashes[{id.level, id.index}] = hash;
                      });
                    }
                    return {};
                  }
                  EXPECT_EQ(bytes->size(), static_cast<std::size_t>(tile.width) * 32);
                  for (std::size_t i = 0; i < static_cast<std::size_t>(tile.width); ++i) {
                    Digest hash{};
                    std::copy_n(bytes->begin() + static_cast<std::ptrdiff_t>(i) * 32, 32, hash.begin());
                    EXPECT_EQ((hashes[{tile.level * 8, first + i}]), hash) << ledger::tile_path(tile);
                  }
                  return {};
                }).ok());
    const auto note = read_file(tiles() + "/checkpoint", 1 << 20);
    const auto checkpoint = ledger::open_checkpoint(
        {reinterpret_cast<const char*>(note->data()), note->size()}, {&test_signer().verifier(), 1});
    ASSERT_TRUE(checkpoint.ok());
    EXPECT_EQ(checkpoint->size, size);
    EXPECT_EQ(checkpoint->root, tree.root());
  }

  std::unique_ptr<SignedLog> log_;
};

TEST_F(TileExportTest, FilesHoldTheLogAndGrowWithIt) {
  auto exported = run();
  ASSERT_TRUE(exported.ok()) << exported.error().message;
  EXPECT_EQ(exported->files, 0u);
  for (const std::uint64_t count : {1, 254, 1, 1, 255, 65400}) {
    append(count);
    const std::uint64_t before = exported->size;
    exported = run();
    ASSERT_TRUE(exported.ok()) << exported.error().message;
    EXPECT_EQ(exported->old_size, before);
    EXPECT_EQ(exported->size, before + count);
    check_files(exported->size);
  }
  EXPECT_EQ(run()->files, 0u);
}

TEST_F(TileExportTest, AnOlderCheckpointIsExportedToo) {
  append(300);
  append(300);
  EXPECT_EQ(run(300)->size, 300u);
  check_files(300);
  EXPECT_FALSE(std::filesystem::exists(tiles() + "/tile/0/001"));
  EXPECT_EQ(run()->old_size, 300u);
  check_files(600);
  EXPECT_NE(run(300).error().message.find("larger tree"), std::string::npos);
}

TEST_F(TileExportTest, AnInterruptedExportIsDoneAgain) {
  append(700);
  ASSERT_TRUE(run().ok());
  append(100);
  // What a crash leaves: new files, cut or whole, and the old checkpoint.
  std::ofstream(tiles() + "/tile/0/003.p/32") << "cut";
  std::ofstream(tiles() + "/tile/0/002.new") << "cut";
  ASSERT_TRUE(run().ok());
  check_files(800);
}

TEST_F(TileExportTest, ALinkWhereATileIsWrittenFirstIsNotFollowed) {
  append(10);
  std::ofstream(path("kept")) << "kept";
  std::filesystem::create_directories(tiles() + "/tile/0/000.p");
  std::filesystem::create_symlink(path("kept"), tiles() + "/tile/0/000.p/10.new");
  ASSERT_TRUE(run().ok());
  check_files(10);
  const auto kept = read_file(path("kept"), 10);
  ASSERT_TRUE(kept.ok());
  EXPECT_EQ(std::string(kept->begin(), kept->end()), "kept");
}

TEST_F(TileExportTest, AnotherLogsFolderIsLeftAlone) {
  append(10);
  const auto refused = [&](std::string_view words) {
    const auto exported = run();
    ASSERT_FALSE(exported.ok());
    EXPECT_EQ(exported.error().kind, ErrorKind::kCaller);
    EXPECT_NE(exported.error().message.find(words), std::string::npos) << exported.error().message;
  };
  const auto other = *ledger::SignerKey::generate("example.com/other");
  std::ofstream(tiles() + "/checkpoint") << *ledger::sign_checkpoint(3, Digest{}, other);
  refused("holds another log, example.com/other");
  std::ofstream(tiles() + "/checkpoint") << *ledger::sign_checkpoint(3, Digest{}, test_signer());
  refused("does not continue");
  std::ofstream(tiles() + "/checkpoint") << "nonsense";
  refused("export into another folder");
}

TEST_F(TileExportTest, WhatIsNoRegularFileIsNotReplaced) {
  append(300);
  ASSERT_TRUE(run(300).ok());
  append(1);
  const std::string tile = tiles() + "/tile/0/001.p/45";
  ASSERT_EQ(::mkfifo(tile.c_str(), 0600), 0);
  const auto refused = run();
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::kCaller);
  EXPECT_NE(refused.error().message.find(tile + ": it is a named pipe"), std::string::npos)
      << refused.error().message;
  EXPECT_TRUE(std::filesystem::is_fifo(tile));
  check_files(300);
  std::filesystem::remove(tile);
  ASSERT_TRUE(run().ok());
  check_files(301);
}

TEST_F(TileExportTest, AFolderThatCannotBeWrittenIsAnEnvironmentError) {
  append(10);
  std::filesystem::remove(tiles());
  std::ofstream(tiles()) << "a file";
  EXPECT_EQ(run().error().kind, ErrorKind::kEnvironment);
}

}  // namespace
}  // namespace fieldprint::store
