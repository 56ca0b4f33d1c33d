#include "ledger/key_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/folder_testing.h"

namespace fieldprint::ledger {
namespace {

class KeyFileTest : public FolderTest {
 protected:
  std::string path() const { return FolderTest::path("ledger.key"); }
};

TEST_F(KeyFileTest, CreatesAPrivateFileOnceAndThenReadsIt) {
  auto first = load_or_create_key_file(path(), "example.com/log");
  ASSERT_TRUE(first.ok()) << first.error().message;
  struct stat info {};
  ASSERT_EQ(::stat(path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777u, 0600u);
  auto second = load_or_create_key_file(path(), "example.com/log");
  ASSERT_TRUE(second.ok()) << second.error().message;
  EXPECT_EQ(second->secret_text(), first->secret_text());
  EXPECT_EQ(load_key_file(path())->verifier(), first->verifier());
}

TEST_F(KeyFileTest, RefusesAFileThatOthersMayRead) {
  ASSERT_TRUE(load_or_create_key_file(path(), "log").ok());
  for (const mode_t mode : {0640u, 0604u, 0620u, 0666u}) {
    ASSERT_EQ(::chmod(path().c_str(), mode), 0);
    auto key = load_or_create_key_file(path(), "log");
    ASSERT_FALSE(key.ok());
    EXPECT_EQ(key.error().kind, ErrorKind::kCaller);
    EXPECT_NE(key.error().message.find("chmod 600"), std::string::npos);
  }
}

TEST_F(KeyFileTest, ANewKeyNeverTakesTheSpaceOfAnother) {
  auto made = create_key_file(path(), "alice");
  ASSERT_TRUE(made.ok()) << made.error().message;
  struct stat info {};
  ASSERT_EQ(::stat(path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777u, 0600u);
  auto again = create_key_file(path(), "alice");
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().kind, ErrorKind::kCaller);
  EXPECT_EQ(load_key_file(path())->secret_text(), made->secret_text());
}

TEST_F(KeyFileTest, RefusesAnotherNameAndDamagedFiles) {
  ASSERT_TRUE(load_or_create_key_file(path(), "log").ok());
  EXPECT_FALSE(load_or_create_key_file(path(), "other").ok());
  for (const std::string_view text : {"", "\n", "PRIVATE+KEY+a\n", "x\ny\n"}) {
    ASSERT_TRUE(write_file_atomically(path(), text, 0600).ok());
    auto key = load_or_create_key_file(path(), "log");
    ASSERT_FALSE(key.ok());
    EXPECT_NE(key.error().message.find("malformed signing key"), std::string::npos);
  }
}

TEST_F(KeyFileTest, NamesAMissingFileAndFolder) {
  EXPECT_EQ(load_key_file(path()).error().kind, ErrorKind::kCaller);
  EXPECT_FALSE(load_or_create_key_file(path() + "/none/key", "log").ok());
}

}  // namespace
}  // namespace fieldprint::ledger
