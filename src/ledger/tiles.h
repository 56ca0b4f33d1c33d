#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

/// The layout of a log as static files or resources (c2sp.org/tlog-tiles): `checkpoint`,
/// `tile/<L>/<N>[.p/<W>]` and `tile/entries/<N>[.p/<W>]`.
namespace fieldprint::ledger {

inline constexpr int kTileWidth = 256;  ///< hashes or entries of a full tile
inline constexpr int kTileHeight = 8;   ///< levels of the tree that one level of tiles spans

/// A row of hashes, or a bundle of entries.
struct Tile {
  bool entries = false;
  int level = 0;            ///< of the tile, 0 … 63; 0 for entries
  std::uint64_t index = 0;  ///< its first hash has the index `index · 256` in the tree's level `8 · level`
  int width = kTileWidth;   ///< 1 … 256
  bool operator==(const Tile&) const = default;
};

/// Relative to the log's prefix: "tile/0/x001/x234/067.p/112".
std::string tile_path(const Tile& tile);

/// The inverse of tile_path, strict; nothing for any other path.
std::optional<Tile> parse_tile_path(std::string_view path);

/// Whether a tree of `size` leaves has the tile, in full or in part.
bool tile_exists(const Tile& tile, std::uint64_t size);

/// What a reader of a served log asks for.
struct LogResource {
  enum class Kind { kCheckpoint, kTile, kProof };
  Kind kind = Kind::kCheckpoint;
  Tile tile = {};            ///< of kTile
  std::uint64_t record = 0;  ///< of kProof: the record whose inclusion is to be proved (c2sp.org/tlog-proof)
  bool operator==(const LogResource&) const = default;
};

/// "/checkpoint", "/" before a tile_path, or "/proof/" before a record's decimal index.
std::string resource_path(const LogResource& resource);

/// The inverse of resource_path, strict: a path of another form, with escapes or a query too, names nothing.
std::optional<LogResource> parse_resource_path(std::string_view path);

/// Calls visit for each tile of a tree of `size` leaves that one of `old_size` has not, until it fails. Needs
/// old_size ≤ size.
Status for_each_new_tile(std::uint64_t old_size, std::uint64_t size,
                         const std::function<Status(const Tile&)>& visit);

/// Entries, each behind its length in two bytes, big endian. An entry longer than those can state
/// (bounds::kMaxLeafBytes) is the caller's error.
Result<std::vector<std::uint8_t>> encode_entries(std::span<const std::vector<std::uint8_t>> entries);

/// The inverse of encode_entries for a bundle of `width` entries.
Result<std::vector<std::vector<std::uint8_t>>> decode_entries(std::span<const std::uint8_t> bundle,
                                                              int width);

}  // namespace fieldprint::ledger
