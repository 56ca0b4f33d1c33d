#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "ledger/tiles.h"
#include "store/ledger_store.h"

namespace fieldprint::store {

struct Exported {
  std::uint64_t size = 0;      ///< leaves of the exported tree
  std::uint64_t old_size = 0;  ///< leaves that the folder held before
  std::uint64_t files = 0;     ///< tiles and bundles written
};

/// The bytes of a tile of the ledger, which it must have in that width.
Result<std::vector<std::uint8_t>> read_tile(LedgerStore& store, const ledger::Tile& tile);

/// Writes the tree of a signed checkpoint of this ledger as static files (c2sp.org/tlog-tiles) into a folder
/// that exists: what is new since the checkpoint there, then, once that is on the disk, the checkpoint. A
/// folder with a larger tree, or one that is no prefix of this ledger, is the caller's error, and so is what
/// check_replaceable() refuses at the place of a tile. After a crash the folder holds a whole log, the old or
/// the new one.
Result<Exported> export_tiles(LedgerStore& store, std::string_view note, const std::string& folder,
                              const std::function<void(std::uint64_t files)>& progress = {});

}  // namespace fieldprint::store
