#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"

namespace fieldprint::weights {

/// A file mapped read-only as a whole. The file must not be shortened by others while it is mapped: the
/// operating system answers a read past the new end with SIGBUS.
class MappedFile {
 public:
  /// A missing, unreadable or empty file and a directory are the caller's error; the rest the environment's.
  static Result<std::unique_ptr<MappedFile>> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::uint8_t> bytes() const { return bytes_; }
  /// Tells the operating system that these bytes will not be read again soon, so that a large file that is
  /// read once does not count as memory in use. They can still be read.
  void forget(std::span<const std::uint8_t> bytes) const;
  const std::string& path() const { return path_; }

 private:
  MappedFile(std::string path, std::span<const std::uint8_t> bytes);
  std::string path_;
  std::span<const std::uint8_t> bytes_;
};

}  // namespace fieldprint::weights
