#include "store/tile_export.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "base/bounds.h"
#include "base/file.h"

namespace fieldprint::store {
namespace {

Error failed(std::string_view what, const std::string& path, int error) {
  return environment_error(fmt::format("cannot {} {}: {}", what, path, system_reason(error)));
}

// A reader never sees a part of a file. Flushing comes once, for all of them.
Status write_unflushed(const std::string& path, std::span<const std::uint8_t> bytes) {
  if (Status status = check_replaceable(path); !status) return status;
  const std::string temporary = path + ".new";
  // A crash may have left one; a link there would lead to somebody else's file.
  if (::unlink(temporary.c_str()) != 0 && errno != ENOENT) return failed("remove", temporary, errno);
  Descriptor fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!fd.valid()) return failed("create", temporary, errno);
  if (!write_all(fd.get(), bytes)) return failed("write", temporary, errno);
  if (fd.close() != 0) return failed("write", temporary, errno);
  if (std::rename(temporary.c_str(), path.c_str()) != 0) return failed("replace", path, errno);
  return {};
}

Status flush_file_system(const std::string& folder) {
  const Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return failed("open", folder, errno);
  if (::syncfs(fd.get()) != 0) return failed("flush", folder, errno);
  return {};
}

// Leaves that the folder's checkpoint covers; 0 without one.
Result<std::uint64_t> exported_before(LedgerStore& store, const ledger::Checkpoint& now,
                                      const std::string& folder) {
  const std::string path = folder + "/checkpoint";
  std::error_code failure;
  if (!std::filesystem::exists(path, failure)) {
    if (failure) return environment_error(fmt::format("cannot examine {}: {}", path, failure.message()));
    return std::uint64_t{0};
  }
  auto bytes = read_file(path, bounds::kMaxNoteBytes);
  if (!bytes) return bytes.error();
  auto before = read_checkpoint({reinterpret_cast<const char*>(bytes->data()), bytes->size()});
  if (!before)
    return caller_error(fmt::format("{}: {}; export into another folder", path, before.error().message));
  const auto refuse = [&](std::string_view why) {
    return caller_error(fmt::format("{} {}; export into another folder", folder, why));
  };
  if (before->origin != now.origin) return refuse(fmt::format("holds another log, {}", before->origin));
  if (before->size > now.size) return refuse(fmt::format("holds a larger tree, of {} leaves", before->size));
  auto root = store.root_at(before->size);
  if (!root) return root.error();
  if (*root != before->root) return refuse("holds a tree that this ledger does not continue");
  return before->size;
}

}  // namespace

Result<std::vector<std::uint8_t>> read_tile(LedgerStore& store, const ledger::Tile& tile) {
  const std::uint64_t begin = tile.index * ledger::kTileWidth;
  const std::uint64_t end = begin + static_cast<std::uint64_t>(tile.width);
  const auto incomplete = [&] {
    return caller_error(fmt::format("the ledger has no {}", ledger::tile_path(tile)));
  };
  if (tile.entries) {
    auto leaves = store.leaves(begin, end);
    if (!leaves) return leaves.error();
    if (leaves->size() != end - begin) return incomplete();
    auto bundle = ledger::encode_entries(*leaves);
    if (!bundle) return caller_error(fmt::format("{}: {}", ledger::tile_path(tile), bundle.error().message));
    return bundle;
  }
  auto nodes = store.nodes(tile.level * ledger::kTileHeight, begin, end);
  if (!nodes) return nodes.error();
  if (nodes->size() != end - begin) return incomplete();
  std::vector<std::uint8_t> bytes;
  for (const Digest& hash : *nodes) bytes.insert(bytes.end(), hash.begin(), hash.end());
  return bytes;
}

Result<Exported> export_tiles(LedgerStore& store, std::string_view note, const std::string& folder,
                              const std::function<void(std::uint64_t)>& progress) {
  auto checkpoint = read_checkpoint(note);
  if (!checkpoint) return checkpoint.error();
  auto root = store.root_at(checkpoint->size);
  if (!root) return root.error();
  if (*root != checkpoint->root) {
    return caller_error(
        fmt::format("the checkpoint's root for {} leaves is not the ledger's", checkpoint->size));
  }
  auto before = exported_before(store, *checkpoint, folder);
  if (!before) return before.error();
  Exported done = {checkpoint->size, *before, 0};
  std::string made;
  Status status =
      ledger::for_each_new_tile(*before, checkpoint->size, [&](const ledger::Tile& tile) -> Status {
        auto bytes = read_tile(store, tile);
        if (!bytes) return bytes.error();
        const std::string path = fmt::format("{}/{}", folder, ledger::tile_path(tile));
        const std::string parent = path.substr(0, path.rfind('/'));
        if (parent != made) {
          std::error_code failure;
          std::filesystem::create_directories(parent, failure);
          if (failure)
            return environment_error(
                fmt::format("cannot create the folder {}: {}", parent, failure.message()));
          made = parent;
        }
        if (Status written = write_unflushed(path, *bytes); !written) return written;
        ++done.files;
        if (progress) progress(done.files);
        return {};
      });
  if (!status) return status.error();
  if (status = flush_file_system(folder); !status) return status.error();
  if (status = write_file_atomically(folder + "/checkpoint", note); !status) return status.error();
  return done;
}

}  // namespace fieldprint::store
