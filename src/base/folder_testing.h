#pragma once

#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <iterator>
#include <string>

#include "base/temporary_folder.h"

namespace fieldprint {

/// A test with a folder of its own.
class FolderTest : public ::testing::Test {
 protected:
  const std::string& folder() const { return folder_.path(); }
  std::string path(const std::string& name) const { return folder_.file(name); }
  /// Whatever is in the folder, folders in it not opened.
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder()), {}));
  }

 private:
  TemporaryFolder folder_ = TemporaryFolder::make().value();
};

}  // namespace fieldprint
