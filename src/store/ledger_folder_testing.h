#pragma once

#include <string>

#include "base/folder_testing.h"

namespace fieldprint::store {

/// A test with a folder for a ledger.
class WithFolder : public FolderTest {
 protected:
  std::string path(const std::string& name = "ledger.db") const { return FolderTest::path(name); }
};

}  // namespace fieldprint::store
