#include "kv/swap_storage.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/file.h"
#include "kv/block_pool.h"

namespace fieldprint::kv {
namespace {

class SwapMemory final : public SwapStorage {
 public:
  SwapMemory(std::unique_ptr<BlockMemory> memory, std::int64_t block_bytes)
      : memory_(std::move(memory)), block_bytes_(block_bytes) {}

  std::uint8_t* room(std::int64_t slot) override { return memory_->base() + slot * block_bytes_; }
  Status store(std::int64_t /*slot*/) override { return {}; }
  Result<const std::uint8_t*> load(std::int64_t slot) override {
    return static_cast<const std::uint8_t*>(room(slot));
  }

 private:
  std::unique_ptr<BlockMemory> memory_;
  std::int64_t block_bytes_;
};

class SwapFile final : public SwapStorage {
 public:
  SwapFile(int fd, std::string path, std::int64_t block_bytes)
      : fd_(fd), path_(std::move(path)), staging_(static_cast<std::size_t>(block_bytes)) {}

  std::uint8_t* room(std::int64_t /*slot*/) override { return staging_.data(); }

  Status store(std::int64_t slot) override {
    if (!write_all_at(fd_.get(), offset(slot), staging_)) return failed("write", system_reason(errno));
    return {};
  }

  Result<const std::uint8_t*> load(std::int64_t slot) override {
    std::size_t done = 0;
    while (done < staging_.size()) {
      const ssize_t got = ::pread(fd_.get(), staging_.data() + done, staging_.size() - done,
                                  offset(slot) + static_cast<off_t>(done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return failed("read", system_reason(errno));
      if (got == 0) return failed("read", "it ends early");
      done += static_cast<std::size_t>(got);
    }
    return static_cast<const std::uint8_t*>(staging_.data());
  }

 private:
  off_t offset(std::int64_t slot) const {
    return static_cast<off_t>(slot) * static_cast<off_t>(staging_.size());
  }
  Error failed(const char* what, const std::string& why) const {
    return environment_error(fmt::format("cannot {} the swap file {}: {}", what, path_, why));
  }

  Descriptor fd_;
  std::string path_;
  std::vector<std::uint8_t> staging_;
};

}  // namespace

Result<std::unique_ptr<SwapStorage>> swap_memory(std::int64_t block_bytes, std::int64_t slots) {
  CHECK(block_bytes > 0 && slots > 0, "{} slots of {} bytes", slots, block_bytes);
  auto memory = map_host_memory(slots * block_bytes);
  if (!memory) return environment_error(memory.error().message + "; let fewer of them be swapped");
  return std::unique_ptr<SwapStorage>(std::make_unique<SwapMemory>(std::move(*memory), block_bytes));
}

Result<std::unique_ptr<SwapStorage>> swap_file(std::int64_t block_bytes, const std::string& path) {
  CHECK(block_bytes > 0, "{} bytes", block_bytes);
  int fd = -1;
  do {
    fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) {
    const int error = errno;
    const std::string message = fmt::format("cannot create the swap file {}: {}", path, system_reason(error));
    const bool callers = error == EEXIST || error == ENOENT || error == ENOTDIR;
    return callers ? caller_error(message) : environment_error(message);
  }
  auto storage = std::make_unique<SwapFile>(fd, path, block_bytes);
  if (::unlink(path.c_str()) != 0) {
    return environment_error(
        fmt::format("cannot take the name of the swap file {} away: {}", path, system_reason(errno)));
  }
  return std::unique_ptr<SwapStorage>(std::move(storage));
}

}  // namespace fieldprint::kv
