#include "weights/fpm_writer.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "base/folder_testing.h"

namespace fieldprint::weights {
namespace {

class FpmWriterTest : public FolderTest {
 protected:
  // A file of one section, up to where it takes its place.
  Result<std::unique_ptr<FpmWriter>> written(const std::string& name) {
    auto writer = FpmWriter::create(path(name), 1);
    if (!writer) return writer.error();
    FpmSection section{};
    section.kind = SectionKind::kManifest;
    if (Status status = (*writer)->add(section, std::vector<std::uint8_t>(100, 7)); !status)
      return status.error();
    return writer;
  }
  static void expect_refused(const Error& error, const std::string& words) {
    EXPECT_EQ(error.kind, ErrorKind::kCaller);
    EXPECT_NE(error.message.find(words), std::string::npos) << error.message;
  }
};

TEST_F(FpmWriterTest, WhatIsNoRegularFileIsNotReplaced) {
  ASSERT_TRUE(std::filesystem::create_directory(path("folder")));
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  expect_refused(written("folder").error(), "it is a folder, not a regular file; choose another path");
  expect_refused(written("pipe").error(), "it is a named pipe, not a regular file; choose another path");
  EXPECT_TRUE(std::filesystem::is_fifo(path("pipe")));
  EXPECT_EQ(files(), 2U);
}

TEST_F(FpmWriterTest, WhatComesThereMeanwhileIsNotReplacedEither) {
  auto writer = written("a.fpm");
  ASSERT_TRUE(writer.ok()) << writer.error().message;
  ASSERT_EQ(::mkfifo(path("a.fpm").c_str(), 0600), 0);
  expect_refused((*writer)->commit().error(), "it is a named pipe");
  writer->reset();
  EXPECT_TRUE(std::filesystem::is_fifo(path("a.fpm")));
  EXPECT_EQ(files(), 1U);
}

TEST_F(FpmWriterTest, AFileIsReplacedAndALinkItself) {
  ASSERT_TRUE((*written("a.fpm"))->commit().ok());
  const auto size = std::filesystem::file_size(path("a.fpm"));
  ASSERT_TRUE((*written("a.fpm"))->commit().ok());
  std::filesystem::resize_file(path("a.fpm"), 1);
  std::filesystem::create_symlink("a.fpm", path("link.fpm"));
  ASSERT_TRUE((*written("link.fpm"))->commit().ok());
  EXPECT_FALSE(std::filesystem::is_symlink(path("link.fpm")));
  EXPECT_EQ(std::filesystem::file_size(path("link.fpm")), size);
  EXPECT_EQ(std::filesystem::file_size(path("a.fpm")), 1U);
  EXPECT_EQ(files(), 2U);
}

}  // namespace
}  // namespace fieldprint::weights
