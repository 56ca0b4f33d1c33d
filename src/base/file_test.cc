#include "base/file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>

namespace fieldprint {
namespace {

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "fieldprint-file-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::size_t files_in_folder() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder_), {}));
  }
  static std::string text_of(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

 private:
  std::string folder_;
};

TEST_F(FileTest, ReadsBackWhatWasWrittenAndLeavesNoTemporaryFile) {
  ASSERT_TRUE(write_file_atomically(path("a"), std::string_view("first")).ok());
  ASSERT_TRUE(write_file_atomically(path("a"), std::string_view("second, longer")).ok());
  auto bytes = read_file(path("a"), 100);
  ASSERT_TRUE(bytes.ok()) << bytes.error().message;
  EXPECT_EQ(text_of(*bytes), "second, longer");
  EXPECT_EQ(files_in_folder(), 1u);
}

TEST_F(FileTest, AppliesTheLimitToTheByte) {
  ASSERT_TRUE(write_file_atomically(path("a"), std::string_view("12345")).ok());
  EXPECT_TRUE(read_file(path("a"), 5).ok());
  auto refused = read_file(path("a"), 4);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::kCaller);
  EXPECT_NE(refused.error().message.find("limit of 4 bytes"), std::string::npos);
}

TEST_F(FileTest, NamesWhatIsMissingOrNoFile) {
  auto missing = read_file(path("none"), 10);
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().kind, ErrorKind::kCaller);
  EXPECT_NE(missing.error().message.find("No such file"), std::string::npos);
  auto folder = read_file(path("."), 10);
  ASSERT_FALSE(folder.ok());
  EXPECT_NE(folder.error().message.find("not a regular file"), std::string::npos);
  const Status no_folder = write_file_atomically(path("no/such"), std::string_view("x"));
  ASSERT_FALSE(no_folder.ok());
  EXPECT_EQ(no_folder.error().kind, ErrorKind::kCaller);
}

TEST_F(FileTest, CreatesOnlyOnceAndWithTheModeAskedFor) {
  const std::vector<std::uint8_t> bytes = {1, 2, 3};
  auto first = create_file_atomically(path("key"), bytes, 0600);
  ASSERT_TRUE(first.ok() && *first);
  auto second = create_file_atomically(path("key"), std::vector<std::uint8_t>{9}, 0600);
  ASSERT_TRUE(second.ok());
  EXPECT_FALSE(*second);
  EXPECT_EQ(*read_file(path("key"), 10), bytes);
  EXPECT_EQ(files_in_folder(), 1u);
  struct stat info {};
  ASSERT_EQ(::stat(path("key").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777u, 0600u);
}

TEST_F(FileTest, AFullDiskIsReportedAndTheOldFileStays) {
  ASSERT_TRUE(write_file_atomically(path("a"), std::string_view("old")).ok());
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {1024, 1024};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const Status status = write_file_atomically(path("a"), std::string(4096, 'x'));
    ::_exit(!status.ok() && status.error().kind == ErrorKind::kEnvironment ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(text_of(*read_file(path("a"), 10)), "old");
  EXPECT_EQ(files_in_folder(), 1u);
}

}  // namespace
}  // namespace fieldprint
