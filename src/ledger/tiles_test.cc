#include "ledger/tiles.h"

#include <gtest/gtest.h>

#include <set>

#include "base/bounds.h"

namespace fieldprint::ledger {
namespace {

std::vector<Tile> tiles_of(std::uint64_t old_size, std::uint64_t size) {
  std::vector<Tile> tiles;
  EXPECT_TRUE(for_each_new_tile(old_size, size, [&](const Tile& tile) {
                tiles.push_back(tile);
                return Status();
              }).ok());
  return tiles;
}

TEST(Tiles, PathsAreThoseOfTheSpecification) {
  EXPECT_EQ(tile_path({false, 0, 1234067, 256}), "tile/0/x001/x234/067");
  EXPECT_EQ(tile_path({false, 3, 0, 17}), "tile/3/000.p/17");
  EXPECT_EQ(tile_path({true, 0, 1000, 1}), "tile/entries/x001/000.p/1");
  for (const Tile& tile : {Tile{false, 0, 0, 256}, Tile{false, 63, 999, 255}, Tile{true, 0, 999999, 256},
                           Tile{false, 1, 1000000, 3}, Tile{true, 0, ~std::uint64_t{0}, 1}}) {
    EXPECT_EQ(parse_tile_path(tile_path(tile)), tile) << tile_path(tile);
  }
}

TEST(Tiles, EveryOtherPathIsRefused) {
  for (const char* path : {"",
                           "tile",
                           "tile/",
                           "tile/0",
                           "tile/0/",
                           "tile/0/0",
                           "tile/0/00",
                           "tile/0/0000",
                           "tile/0/x000",
                           "tile/0/000/",
                           "tile/00/000",
                           "tile/-1/000",
                           "tile/+1/000",
                           "tile/64/000",
                           "tile/0/x000/001",
                           "tile/0/001/000",
                           "tile/0/x001000",
                           "tile/0/000.p/0",
                           "tile/0/000.p/256",
                           "tile/0/000.p/01",
                           "tile/0/000.p/",
                           "tile/0/000.p",
                           "tile/0/000.p/1/",
                           "tile/0/00a",
                           "tile/entry/000",
                           "tile/entries/x1/000",
                           "/tile/0/000",
                           "tile/0/x018/x446/x744/x073/x709/x551/616",
                           "tile/0/000.p/1.p/1"}) {
    EXPECT_FALSE(parse_tile_path(path).has_value()) << path;
  }
}

TEST(Tiles, ResourcesOfAServedLogHaveOnePathEach) {
  using Kind = LogResource::Kind;
  const std::pair<LogResource, const char*> known[] = {
      {{}, "/checkpoint"},
      {{Kind::kTile, {false, 2, 1234067, 7}}, "/tile/2/x001/x234/067.p/7"},
      {{Kind::kTile, {true, 0, 0, 256}}, "/tile/entries/000"},
      {{Kind::kProof, {}, 0}, "/proof/0"},
      {{Kind::kProof, {}, ~std::uint64_t{0}}, "/proof/18446744073709551615"}};
  for (const auto& [resource, path] : known) {
    EXPECT_EQ(resource_path(resource), path);
    EXPECT_EQ(parse_resource_path(path), resource) << path;
  }
  for (const char* path :
       {"", "/", "checkpoint", "/checkpoint/", "/Checkpoint", "/checkpoint?x", "//checkpoint",
        "/tile/0/00%30", "/tile/0/000?", "/tile/0/../0/000", "tile/0/000", "/proof", "/proof/", "/proof/00",
        "/proof/-1", "/proof/+1", "/proof/1/", "/proof/0x1", "/proof/18446744073709551616"}) {
    EXPECT_FALSE(parse_resource_path(path).has_value()) << path;
  }
}

TEST(Tiles, ATreeOf70000HasTheTilesOfTheSpecification) {
  std::map<int, std::pair<int, int>> full_and_width;
  int bundles = 0;
  for (const Tile& tile : tiles_of(0, 70000)) {
    EXPECT_TRUE(tile_exists(tile, 70000));
    if (tile.entries) {
      ++bundles;
    } else if (tile.width == kTileWidth) {
      ++full_and_width[tile.level].first;
    } else {
      full_and_width[tile.level].second = tile.width;
    }
  }
  EXPECT_EQ(full_and_width, (std::map<int, std::pair<int, int>>{{0, {273, 112}}, {1, {1, 17}}, {2, {0, 1}}}));
  EXPECT_EQ(bundles, 274);
  const auto whole = tiles_of(0, 256);
  ASSERT_EQ(whole.size(), 3u);
  EXPECT_EQ(whole[2], (Tile{false, 1, 0, 1}));
  EXPECT_FALSE(tile_exists({false, 0, 0, 256}, 255));
  EXPECT_TRUE(tile_exists({false, 0, 0, 255}, 255));
  EXPECT_TRUE(tile_exists({false, 0, 0, 3}, 256));
  EXPECT_FALSE(tile_exists({false, 8, 0, 1}, ~std::uint64_t{0}));
}

TEST(Tiles, WhatIsNewTogetherWithWhatWasThereIsEverything) {
  const std::uint64_t sizes[] = {0, 1, 2, 255, 256, 257, 511, 512, 1000, 65535, 65536, 65537, 131072, 140000};
  for (const std::uint64_t old_size : sizes) {
    for (const std::uint64_t size : sizes) {
      if (size < old_size) continue;
      std::set<std::string> have;
      for (const Tile& tile : tiles_of(0, old_size)) have.insert(tile_path(tile));
      for (const Tile& tile : tiles_of(old_size, size)) EXPECT_TRUE(have.insert(tile_path(tile)).second);
      for (const Tile& tile : tiles_of(0, size))
        EXPECT_TRUE(have.contains(tile_path(tile))) << tile_path(tile);
    }
  }
}

TEST(Tiles, AFailingVisitEndsTheWalk) {
  int visits = 0;
  const Status status = for_each_new_tile(0, 1000, [&](const Tile&) -> Status {
    ++visits;
    return environment_error("no disk");
  });
  EXPECT_EQ(status.error().message, "no disk");
  EXPECT_EQ(visits, 1);
}

TEST(Tiles, EntryBundlesRoundTripAndCutOnesAreRefused) {
  const std::vector<std::vector<std::uint8_t>> entries = {
      {}, {1}, std::vector<std::uint8_t>(256, 2), std::vector<std::uint8_t>(bounds::kMaxLeafBytes, 3)};
  auto bundle = encode_entries(entries).value();
  EXPECT_EQ(bundle.size(), 4 * 2 + 0 + 1 + 256 + 65535u);
  EXPECT_EQ(bundle[5], 1);
  EXPECT_EQ(*decode_entries(bundle, 4), entries);
  EXPECT_FALSE(decode_entries(bundle, 3).ok());
  EXPECT_FALSE(decode_entries(bundle, 5).ok());
  bundle.pop_back();
  EXPECT_NE(decode_entries(bundle, 4).error().message.find("within entry 3"), std::string::npos);
  EXPECT_NE(decode_entries(std::span(bundle).first(3), 4).error().message.find("before entry 1"),
            std::string::npos);
}

TEST(Tiles, AnEntryThatABundleCannotHoldIsTheCallersError) {
  const std::vector<std::vector<std::uint8_t>> entries = {
      {1}, std::vector<std::uint8_t>(std::size_t{bounds::kMaxLeafBytes} + 1, 3)};
  const auto bundle = encode_entries(entries);
  ASSERT_FALSE(bundle.ok());
  EXPECT_EQ(bundle.error().kind, ErrorKind::kCaller);
  EXPECT_NE(bundle.error().message.find("entry 1 of the bundle has 65536 bytes"), std::string::npos);
}

}  // namespace
}  // namespace fieldprint::ledger
