#pragma once

#include <string>
#include <utility>

#include "base/result.h"

namespace fieldprint {

/// A folder of its own where the system keeps temporary files; it and what is in it go away at the end.
class TemporaryFolder {
 public:
  /// What cannot be made is an environment error that names TMPDIR.
  static Result<TemporaryFolder> make();
  ~TemporaryFolder();
  TemporaryFolder(TemporaryFolder&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  TemporaryFolder& operator=(TemporaryFolder&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  explicit TemporaryFolder(std::string path) : path_(std::move(path)) {}

  std::string path_;  ///< empty: moved from
};

}  // namespace fieldprint
