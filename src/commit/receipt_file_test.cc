#include "commit/receipt_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>

#include "base/file.h"
#include "base/folder_testing.h"
#include "commit/receipt_sample.h"

namespace fieldprint::commit {
namespace {

using ReceiptFileTest = FolderTest;

TEST_F(ReceiptFileTest, WritesTheReceiptAndItsViewAndReadsItBack) {
  const Receipt receipt = sample::receipt(11);
  auto path = write_receipt(folder(), "req-1", receipt);
  ASSERT_TRUE(path.ok()) << path.error().message;
  EXPECT_EQ(*path, folder() + "/req-1.receipt");
  EXPECT_EQ(*read_receipt(*path), receipt);
  auto json = read_file(folder() + "/req-1.json", 1 << 20);
  ASSERT_TRUE(json.ok());
  EXPECT_EQ(std::string(json->begin(), json->end()), *to_json(receipt));
  EXPECT_EQ(files(), 2U);
}

TEST_F(ReceiptFileTest, NeverReplacesAReceipt) {
  EXPECT_FALSE(*has_receipt(folder(), "a"));
  ASSERT_TRUE(write_receipt(folder(), "a", sample::receipt(1)).ok());
  EXPECT_TRUE(*has_receipt(folder(), "a"));
  auto again = write_receipt(folder(), "a", sample::receipt(2));
  ASSERT_FALSE(again.ok());
  EXPECT_EQ(again.error().kind, ErrorKind::kCaller);
  EXPECT_EQ(*read_receipt(folder() + "/a.receipt"), sample::receipt(1));
}

TEST_F(ReceiptFileTest, TakesAwayAReceiptWithItsViewAndNothingElse) {
  auto path = write_receipt(folder(), "v1.2", sample::receipt(1));
  ASSERT_TRUE(path.ok());
  ASSERT_TRUE(write_receipt(folder(), "v1", sample::receipt(2)).ok());
  ASSERT_TRUE(remove_receipt(*path).ok());
  EXPECT_FALSE(*has_receipt(folder(), "v1.2"));
  EXPECT_TRUE(*has_receipt(folder(), "v1"));
  EXPECT_EQ(files(), 2U);
}

TEST_F(ReceiptFileTest, AReceiptWhoseViewCannotBeWrittenDoesNotStay) {
  const std::string view = folder() + "/a.json";
  for (const bool is_folder : {true, false}) {
    ASSERT_EQ(is_folder ? ::mkdir(view.c_str(), 0700) : ::mkfifo(view.c_str(), 0600), 0);
    auto path = write_receipt(folder(), "a", sample::receipt(1));
    ASSERT_FALSE(path.ok());
    EXPECT_EQ(path.error().kind, ErrorKind::kCaller);
    EXPECT_NE(path.error().message.find("cannot replace " + view), std::string::npos) << path.error().message;
    EXPECT_FALSE(std::filesystem::exists(folder() + "/a.receipt"));
    EXPECT_EQ(files(), 1U);
    const auto before = has_receipt(folder(), "a");
    ASSERT_FALSE(before.ok());
    EXPECT_EQ(before.error().message, path.error().message);
    EXPECT_TRUE(std::filesystem::remove(view));
    EXPECT_FALSE(*has_receipt(folder(), "a"));
  }
  EXPECT_TRUE(write_receipt(folder(), "a", sample::receipt(1)).ok());
}

TEST_F(ReceiptFileTest, ALinkInAViewsPlaceIsNotTakenAway) {
  auto path = write_receipt(folder(), "a", sample::receipt(1));
  ASSERT_TRUE(path.ok());
  std::filesystem::rename(folder() + "/a.json", folder() + "/kept");
  std::filesystem::create_symlink("kept", folder() + "/a.json");
  ASSERT_TRUE(remove_receipt(*path).ok());
  EXPECT_FALSE(*has_receipt(folder(), "a"));
  EXPECT_TRUE(std::filesystem::is_symlink(folder() + "/a.json"));
}

TEST_F(ReceiptFileTest, RefusesIdsThatAreNoPlainNames) {
  for (const std::string& id : {std::string(), std::string("."), std::string("../x"), std::string("a/b"),
                                std::string("a b"), std::string("\xc3\xa9"), std::string(129, 'a')}) {
    auto path = write_receipt(folder(), id, sample::receipt(1));
    ASSERT_FALSE(path.ok()) << id;
    EXPECT_EQ(path.error().kind, ErrorKind::kCaller);
  }
}

TEST_F(ReceiptFileTest, NamesTheFileThatIsMissingOrDamaged) {
  auto missing = read_receipt(folder() + "/none.receipt");
  ASSERT_FALSE(missing.ok());
  EXPECT_NE(missing.error().message.find("none.receipt"), std::string::npos);
  ASSERT_TRUE(write_file_atomically(folder() + "/bad.receipt", std::string_view("not CBOR")).ok());
  auto damaged = read_receipt(folder() + "/bad.receipt");
  ASSERT_FALSE(damaged.ok());
  EXPECT_EQ(damaged.error().kind, ErrorKind::kCaller);
  EXPECT_NE(damaged.error().message.find("bad.receipt"), std::string::npos);
  EXPECT_EQ(write_receipt(folder() + "/none", "a", sample::receipt(1)).error().kind, ErrorKind::kCaller);
}

TEST_F(ReceiptFileTest, AReceiptOfAnEarlierVersionIsNotCalledUnsound) {
  Bytes bytes = *encode(sample::receipt(1));
  const std::string_view key = "version";
  const auto at = std::search(bytes.begin(), bytes.end(), key.begin(), key.end());
  ASSERT_NE(at, bytes.end());
  at[static_cast<std::ptrdiff_t>(key.size())] = 1;
  ASSERT_TRUE(write_file_atomically(folder() + "/old.receipt", bytes).ok());
  const std::string message = read_receipt(folder() + "/old.receipt").error().message;
  EXPECT_NE(message.find("old.receipt: receipt field version: made by an earlier version"), std::string::npos)
      << message;
}

TEST_F(ReceiptFileTest, AFullDiskIsTheEnvironmentsErrorAndLeavesNoPart) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {512, 512};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    auto path = write_receipt(folder(), "a", sample::receipt(1));
    ::_exit(!path.ok() && path.error().kind == ErrorKind::kEnvironment ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(std::filesystem::is_empty(folder()));
}

}  // namespace
}  // namespace fieldprint::commit
