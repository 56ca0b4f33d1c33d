#include "base/temporary_folder.h"

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace fieldprint {

Result<TemporaryFolder> TemporaryFolder::make() {
  std::error_code failure;
  const std::filesystem::path place = std::filesystem::temp_directory_path(failure);
  std::string path = (place / "fieldprint-XXXXXX").string();
  if (!failure && ::mkdtemp(path.data()) == nullptr) failure.assign(errno, std::generic_category());
  if (failure) {
    return environment_error(fmt::format(
        "cannot make a temporary folder: {}; set TMPDIR to a folder that may be written", failure.message()));
  }
  return TemporaryFolder(std::move(path));
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
}

}  // namespace fieldprint
