#include "base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "base/fault_point.h"

namespace fieldprint {
namespace {

Error failed(std::string_view what, const std::string& path, int error) {
  return environment_error(fmt::format("cannot {} {}: {}", what, path, system_reason(error)));
}

int open_retrying(const char* path, int flags, mode_t mode = 0) {
  int fd = -1;
  do {
    fd = ::open(path, flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// `write_some(rest, done)` writes a part of what follows the first `done` bytes and returns as write(2).
template <class WriteSome>
bool write_whole(std::span<const std::uint8_t> bytes, const WriteSome& write_some) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t written = write_some(bytes.subspan(done), static_cast<off_t>(done));
    if (written < 0 && errno == EINTR) continue;
    if (written == 0) errno = EIO;
    if (written <= 0) return false;
    done += static_cast<std::size_t>(written);
  }
  return true;
}

std::string_view kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "folder";
  if (S_ISFIFO(mode)) return "named pipe";
  if (S_ISSOCK(mode)) return "socket";
  return "device";
}

// Removes the temporary file unless it took its final name.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& target) {
    static std::atomic<std::uint64_t> counter{0};
    path_ = fmt::format("{}.tmp.{}.{}", target, ::getpid(), counter.fetch_add(1));
  }
  ~TemporaryFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }
  void keep() { path_.clear(); }

 private:
  std::string path_;
};

Status write_temporary(const TemporaryFile& temporary, const std::string& target,
                       std::span<const std::uint8_t> bytes, mode_t mode) {
  Descriptor fd(open_retrying(temporary.path().c_str(), O_WRONLY | O_CREAT | O_EXCL, mode));
  if (!fd.valid()) {
    if (errno == ENOENT || errno == ENOTDIR) {
      return caller_error(
          fmt::format("cannot write {}: there is no folder {}; create it first", target, folder_of(target)));
    }
    return failed("create a file beside", target, errno);
  }
  if (!write_all(fd.get(), bytes)) return failed("write", target, errno);
  if (::fsync(fd.get()) != 0) return failed("flush", target, errno);
  if (fd.close() != 0) return failed("close", target, errno);
  return {};
}

}  // namespace

std::string system_reason(int error) { return std::generic_category().message(error); }

int Descriptor::close() { return ::close(std::exchange(fd_, -1)); }

bool write_all(int descriptor, std::span<const std::uint8_t> bytes) {
  return write_whole(bytes, [&](std::span<const std::uint8_t> rest, off_t /*done*/) {
    return ::write(descriptor, rest.data(), rest.size());
  });
}

bool write_all_at(int descriptor, off_t offset, std::span<const std::uint8_t> bytes) {
  return write_whole(bytes, [&](std::span<const std::uint8_t> rest, off_t done) {
    return ::pwrite(descriptor, rest.data(), rest.size(), offset + done);
  });
}

Status sync_folder_of(const std::string& path) {
  const std::string folder = folder_of(path);
  const Descriptor fd(open_retrying(folder.c_str(), O_RDONLY | O_DIRECTORY));
  if (!fd.valid()) return failed("open the folder", folder, errno);
  if (::fsync(fd.get()) != 0) return failed("flush the folder", folder, errno);
  return {};
}

Result<std::vector<std::uint8_t>> read_file(const std::string& path, std::int64_t max_bytes) {
  const Descriptor fd(open_retrying(path.c_str(), O_RDONLY | O_NONBLOCK));
  if (!fd.valid()) return caller_error(fmt::format("cannot open {}: {}", path, system_reason(errno)));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return failed("examine", path, errno);
  if (!S_ISREG(info.st_mode)) return caller_error(fmt::format("{} is not a regular file", path));
  const auto too_long = [&] {
    return caller_error(fmt::format("{} is longer than the limit of {} bytes", path, max_bytes));
  };
  if (info.st_size > max_bytes) return too_long();

  std::vector<std::uint8_t> bytes;
  bytes.reserve(static_cast<std::size_t>(info.st_size) + 1);
  std::vector<std::uint8_t> chunk(1 << 16);
  while (true) {
    const ssize_t got = ::read(fd.get(), chunk.data(), chunk.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return failed("read", path, errno);
    if (got == 0) return bytes;
    bytes.insert(bytes.end(), chunk.begin(), chunk.begin() + got);
    // The file may grow while it is read.
    if (std::cmp_greater(bytes.size(), max_bytes)) return too_long();
  }
}

Status check_replaceable(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    // A folder that is missing is told, with more words, by whoever writes there.
    if (errno == ENOENT || errno == ENOTDIR) return {};
    return failed("examine", path, errno);
  }
  if (S_ISREG(info.st_mode)) return {};
  return caller_error(fmt::format("cannot replace {}: it is a {}, not a regular file; choose another path",
                                  path, kind_of(info.st_mode)));
}

Status write_file_atomically(const std::string& path, std::span<const std::uint8_t> bytes, mode_t mode) {
  if (Status status = check_replaceable(path); !status) return status;
  TemporaryFile temporary(path);
  if (Status status = write_temporary(temporary, path, bytes, mode); !status) return status;
  if (Status status = FAULT_POINT("file.replace.temporary_written"); !status) return status;
  if (::rename(temporary.path().c_str(), path.c_str()) != 0) return failed("replace", path, errno);
  temporary.keep();
  CRASH_POINT("file.replace.renamed");
  return sync_folder_of(path);
}

Status write_file_atomically(const std::string& path, std::string_view text, mode_t mode) {
  return write_file_atomically(path, {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}, mode);
}

Result<bool> create_file_atomically(const std::string& path, std::span<const std::uint8_t> bytes,
                                    mode_t mode) {
  const TemporaryFile temporary(path);
  if (Status status = write_temporary(temporary, path, bytes, mode); !status) return status.error();
  if (Status status = FAULT_POINT("file.create.temporary_written"); !status) return status.error();
  if (::link(temporary.path().c_str(), path.c_str()) != 0) {
    if (errno == EEXIST) return false;
    return failed("create", path, errno);
  }
  CRASH_POINT("file.create.linked");
  if (Status status = sync_folder_of(path); !status) {
    ::unlink(path.c_str());  // or the next attempt would find it
    return status.error();
  }
  return true;
}

}  // namespace fieldprint
