#include "base/temporary_folder.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>

namespace fieldprint {
namespace {

TEST(TemporaryFolder, IsThereUntilItsEndWithAllThatIsInIt) {
  auto one = TemporaryFolder::make();
  auto other = TemporaryFolder::make();
  ASSERT_TRUE(one.ok() && other.ok());
  const std::string path = one->path();
  EXPECT_NE(path, other->path());
  std::filesystem::create_directory(one->file("inner"));
  std::ofstream(one->file("inner/file")) << "text";
  {
    const TemporaryFolder moved = std::move(*one);
    EXPECT_EQ(moved.path(), path);
    EXPECT_TRUE(std::filesystem::exists(moved.file("inner/file")));
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_TRUE(std::filesystem::is_directory(other->path()));
}

TEST(TemporaryFolder, SaysWhatToSetWhereNoneCanBeMade) {
  const char* set = std::getenv("TMPDIR");
  const std::optional<std::string> before = set == nullptr ? std::nullopt : std::optional<std::string>(set);
  ::setenv("TMPDIR", "/none/at/all", 1);
  const auto folder = TemporaryFolder::make();
  if (before) {
    ::setenv("TMPDIR", before->c_str(), 1);
  } else {
    ::unsetenv("TMPDIR");
  }
  ASSERT_FALSE(folder.ok());
  EXPECT_EQ(folder.error().kind, ErrorKind::kEnvironment);
  EXPECT_NE(folder.error().message.find("TMPDIR"), std::string::npos);
}

}  // namespace
}  // namespace fieldprint
