#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace fieldprint {

/// What an errno means, in the words of the operating system.
std::string system_reason(int error);

/// A file descriptor that is closed on every way out; negative: none.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (valid()) close();
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }  ///< the caller closes it from now on
  /// As close(2): it reports the write errors of some network file systems, so look where data was written.
  int close();

 private:
  int fd_;
};

/// Writes all of `bytes` where the descriptor stands, in as many calls of write(2) as it takes; a call that a
/// signal interrupts is made again. False if one fails, with errno as it left it, or EIO if the system took
/// nothing: a part may be written then. A descriptor that does not block may fail so with EAGAIN.
[[nodiscard]] bool write_all(int descriptor, std::span<const std::uint8_t> bytes);
/// The same from `offset` of a file on, by pwrite(2), which leaves alone where the descriptor stands.
[[nodiscard]] bool write_all_at(int descriptor, off_t offset, std::span<const std::uint8_t> bytes);

/// The whole of a regular file. A file that is missing, unreadable, no regular file or longer than
/// `max_bytes` is the caller's error; a failing read is the environment's.
Result<std::vector<std::uint8_t>> read_file(const std::string& path, std::int64_t max_bytes);

/// Whether a file may be renamed to `path`: if nothing or a regular file is there. A folder, a device, a pipe
/// or a socket, or a symbolic link to one, is the caller's error; what cannot be examined the environment's.
/// A symbolic link to a regular file or to nothing may go: renaming replaces the link, and what it leads to
/// stays.
Status check_replaceable(const std::string& path);

/// Replaces `path` by `bytes` so that a crash leaves the old file or the new one, never a part: a temporary
/// file in the same folder, fsync, rename, fsync of the folder. Every failure is the environment's, save a
/// folder that does not exist and what check_replaceable() refuses; a symbolic link is replaced as it says.
Status write_file_atomically(const std::string& path, std::span<const std::uint8_t> bytes,
                             mode_t mode = 0644);
Status write_file_atomically(const std::string& path, std::string_view text, mode_t mode = 0644);

/// Creates `path` with `bytes` in the same way, but only if there is no such file yet: false if there is.
Result<bool> create_file_atomically(const std::string& path, std::span<const std::uint8_t> bytes,
                                    mode_t mode);

/// Makes the name of a file just created in its folder survive a crash.
Status sync_folder_of(const std::string& path);

}  // namespace fieldprint
