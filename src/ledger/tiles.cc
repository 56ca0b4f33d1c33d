#include "ledger/tiles.h"

#include <charconv>
#include <limits>
#include <utility>

#include "base/bounds.h"

namespace fieldprint::ledger {
namespace {

constexpr std::string_view kPrefix = "tile/";
constexpr std::string_view kEntries = "entries";
constexpr std::string_view kPartial = ".p/";
constexpr int kMaxTileLevel = 63;
constexpr std::string_view kCheckpoint = "/checkpoint";
constexpr std::string_view kProof = "/proof/";

// Decimal digits without a leading zero.
std::optional<std::uint64_t> parse_number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool plain = !text.empty() && (text.size() == 1 || text.front() != '0');
  if (!plain || error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<int> parse_small(std::string_view text, int least, int most) {
  const auto value = parse_number(text);
  if (!value || std::cmp_less(*value, least) || std::cmp_greater(*value, most)) return std::nullopt;
  return static_cast<int>(*value);
}

// Three digits an element; all but the last begin with an x.
std::optional<std::uint64_t> parse_index(std::string_view text) {
  std::uint64_t index = 0;
  bool first = true;
  while (true) {
    const bool more = !text.empty() && text.front() == 'x';
    if (more) text.remove_prefix(1);
    if (text.size() < 3) return std::nullopt;
    std::uint64_t group = 0;
    for (const char c : text.substr(0, 3)) {
      if (c < '0' || c > '9') return std::nullopt;
      group = group * 10 + static_cast<std::uint64_t>(c - '0');
    }
    // A leading group of zeros would be a second path for the same index.
    if (more && first && group == 0) return std::nullopt;
    if (index > (std::numeric_limits<std::uint64_t>::max() - group) / 1000) return std::nullopt;
    index = index * 1000 + group;
    text.remove_prefix(3);
    if (!more) return text.empty() ? std::optional(index) : std::nullopt;
    if (text.empty() || text.front() != '/') return std::nullopt;
    text.remove_prefix(1);
    first = false;
  }
}

std::string index_path(std::uint64_t index) {
  std::string path = fmt::format("{:03}", index % 1000);
  for (index /= 1000; index > 0; index /= 1000) path = fmt::format("x{:03}/{}", index % 1000, path);
  return path;
}

// Hashes of the tree's level 8 · level.
std::uint64_t hashes_at(int level, std::uint64_t size) {
  return level * kTileHeight < 64 ? size >> (level * kTileHeight) : 0;
}

}  // namespace

std::string tile_path(const Tile& tile) {
  const std::string level = tile.entries ? std::string(kEntries) : fmt::format("{}", tile.level);
  const std::string width = tile.width == kTileWidth ? "" : fmt::format("{}{}", kPartial, tile.width);
  return fmt::format("{}{}/{}{}", kPrefix, level, index_path(tile.index), width);
}

std::optional<Tile> parse_tile_path(std::string_view path) {
  if (!path.starts_with(kPrefix)) return std::nullopt;
  path.remove_prefix(kPrefix.size());
  const std::size_t slash = path.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  const std::string_view level = path.substr(0, slash);
  path.remove_prefix(slash + 1);
  Tile tile;
  tile.entries = level == kEntries;
  if (!tile.entries) {
    const auto number = parse_small(level, 0, kMaxTileLevel);
    if (!number) return std::nullopt;
    tile.level = *number;
  }
  if (const std::size_t partial = path.find(kPartial); partial != std::string_view::npos) {
    const auto width = parse_small(path.substr(partial + kPartial.size()), 1, kTileWidth - 1);
    if (!width) return std::nullopt;
    tile.width = *width;
    path = path.substr(0, partial);
  }
  const auto index = parse_index(path);
  if (!index) return std::nullopt;
  tile.index = *index;
  return tile;
}

std::string resource_path(const LogResource& resource) {
  switch (resource.kind) {
    case LogResource::Kind::kCheckpoint:
      return std::string(kCheckpoint);
    case LogResource::Kind::kTile:
      return "/" + tile_path(resource.tile);
    case LogResource::Kind::kProof:
      return fmt::format("{}{}", kProof, resource.record);
  }
  CHECK(false, "a resource of no kind");
  return {};
}

std::optional<LogResource> parse_resource_path(std::string_view path) {
  LogResource resource;
  if (path == kCheckpoint) return resource;
  if (path.starts_with(kProof)) {
    const auto record = parse_number(path.substr(kProof.size()));
    if (!record) return std::nullopt;
    resource.kind = LogResource::Kind::kProof;
    resource.record = *record;
    return resource;
  }
  if (path.empty() || path.front() != '/') return std::nullopt;
  const auto tile = parse_tile_path(path.substr(1));
  if (!tile) return std::nullopt;
  resource.kind = LogResource::Kind::kTile;
  resource.tile = *tile;
  return resource;
}

bool tile_exists(const Tile& tile, std::uint64_t size) {
  const std::uint64_t hashes = hashes_at(tile.level, size);
  const std::uint64_t whole = hashes / kTileWidth;
  return tile.index < whole ||
         (tile.index == whole && static_cast<std::uint64_t>(tile.width) <= hashes % kTileWidth);
}

Status for_each_new_tile(std::uint64_t old_size, std::uint64_t size,
                         const std::function<Status(const Tile&)>& visit) {
  CHECK(old_size <= size);
  for (int level = 0; hashes_at(level, size) > 0; ++level) {
    const std::uint64_t before = hashes_at(level, old_size);
    const std::uint64_t now = hashes_at(level, size);
    if (before == now) continue;
    for (const bool entries : {true, false}) {
      if (entries && level > 0) continue;
      for (std::uint64_t index = before / kTileWidth; index < now / kTileWidth; ++index) {
        if (Status status = visit({entries, level, index, kTileWidth}); !status) return status;
      }
      const int rest = static_cast<int>(now % kTileWidth);
      if (rest == 0) continue;
      if (Status status = visit({entries, level, now / kTileWidth, rest}); !status) return status;
    }
  }
  return {};
}

Result<std::vector<std::uint8_t>> encode_entries(std::span<const std::vector<std::uint8_t>> entries) {
  std::vector<std::uint8_t> bundle;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto& entry = entries[i];
    if (std::cmp_greater(entry.size(), bounds::kMaxLeafBytes)) {
      return caller_error(fmt::format(
          "entry {} of the bundle has {} bytes, but c2sp.org/tlog-tiles can hold {}; a ledger with such "
          "a leaf cannot be exported as tiles",
          i, entry.size(), bounds::kMaxLeafBytes));
    }
    bundle.push_back(static_cast<std::uint8_t>(entry.size() >> 8));
    bundle.push_back(static_cast<std::uint8_t>(entry.size() & 0xff));
    bundle.insert(bundle.end(), entry.begin(), entry.end());
  }
  return bundle;
}

Result<std::vector<std::vector<std::uint8_t>>> decode_entries(std::span<const std::uint8_t> bundle,
                                                              int width) {
  std::vector<std::vector<std::uint8_t>> entries;
  for (int i = 0; i < width; ++i) {
    if (bundle.size() < 2)
      return caller_error(fmt::format("the entry bundle ends before entry {} of {}", i, width));
    const std::size_t size = static_cast<std::size_t>(bundle[0]) << 8 | bundle[1];
    bundle = bundle.subspan(2);
    if (bundle.size() < size)
      return caller_error(fmt::format("the entry bundle ends within entry {} of {}", i, width));
    entries.emplace_back(bundle.begin(), bundle.begin() + static_cast<std::ptrdiff_t>(size));
    bundle = bundle.subspan(size);
  }
  if (!bundle.empty()) return caller_error(fmt::format("{} bytes follow the entry bundle", bundle.size()));
  return entries;
}

}  // namespace fieldprint::ledger
