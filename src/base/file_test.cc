#include "base/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "base/folder_testing.h"

namespace fieldprint {
namespace {

class FileTest : public FolderTest {
 protected:
  static std::string text_of(const std::vector<std::uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }
};

// No two neighbouring pages are alike.
std::vector<std::uint8_t> numbered_bytes(std::size_t size) {
  std::vector<std::uint8_t> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::uint8_t>(i ^ (i >> 8) ^ (i >> 16));
  return bytes;
}

struct Pipe {
  explicit Pipe(int flags = 0) {
    int ends[2] = {-1, -1};
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC | flags), 0);
    out = std::make_unique<Descriptor>(ends[0]);
    in = std::make_unique<Descriptor>(ends[1]);
  }
  std::unique_ptr<Descriptor> out;
  std::unique_ptr<Descriptor> in;
};

// Whether `condition` holds in a child process whose files may not become longer than that.
template <class Condition>
bool holds_with_files_of_at_most(rlim_t bytes, const Condition& condition) {
  const pid_t child = ::fork();
  EXPECT_GE(child, 0);
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {bytes, bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::_exit(condition() ? 0 : 1);
  }
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status == 0;
}

std::atomic<int> signals_handled{0};

TEST(WriteAll, GoesOnAfterWritesThatSignalsCutShortOrInterrupt) {
  struct sigaction handler {};
  struct sigaction before {};
  handler.sa_handler = [](int) { ++signals_handled; };  // without SA_RESTART
  ASSERT_EQ(::sigaction(SIGUSR1, &handler, &before), 0);
  const auto bytes = numbered_bytes(1 << 20);
  Pipe pipe;
  std::vector<std::uint8_t> got;
  // The first signal finds a call that has filled the pipe, the second one that could write nothing yet.
  std::thread reader([&, writer = ::pthread_self()] {
    std::vector<std::uint8_t> chunk(1 << 14);
    while (true) {
      for (int i = 0; i < 2 && got.size() < bytes.size() / 2; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        ::pthread_kill(writer, SIGUSR1);
      }
      const ssize_t size = ::read(pipe.out->get(), chunk.data(), chunk.size());
      if (size <= 0) return;
      got.insert(got.end(), chunk.begin(), chunk.begin() + size);
    }
  });
  const bool written = write_all(pipe.in->get(), bytes);
  pipe.in->close();
  reader.join();
  ASSERT_EQ(::sigaction(SIGUSR1, &before, nullptr), 0);
  EXPECT_TRUE(written);
  EXPECT_GT(signals_handled, 1);
  EXPECT_EQ(got, bytes);
}

TEST(WriteAll, AFullDeviceAndABadDescriptorAreToldByErrno) {
  const std::vector<std::uint8_t> bytes = {1, 2, 3};
  const Descriptor full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(full.valid());
  EXPECT_FALSE(write_all(full.get(), bytes));
  EXPECT_EQ(errno, ENOSPC);
  EXPECT_FALSE(write_all_at(full.get(), 7, bytes));
  EXPECT_EQ(errno, ENOSPC);
  EXPECT_FALSE(write_all(-1, bytes));
  EXPECT_EQ(errno, EBADF);
  const Pipe pipe;
  EXPECT_FALSE(write_all_at(pipe.in->get(), 0, bytes));
  EXPECT_EQ(errno, ESPIPE);
}

TEST(WriteAll, WhatFitsIsWrittenBeforeTheRestFails) {
  const auto bytes = numbered_bytes(1 << 20);
  const Pipe pipe(O_NONBLOCK);
  ASSERT_FALSE(write_all(pipe.in->get(), bytes));
  EXPECT_EQ(errno, EAGAIN);
  std::vector<std::uint8_t> got(bytes.size());
  const ssize_t size = ::read(pipe.out->get(), got.data(), got.size());
  ASSERT_GT(size, 0);
  got.resize(static_cast<std::size_t>(size));
  EXPECT_TRUE(std::equal(got.begin(), got.end(), bytes.begin()));
  EXPECT_EQ(::fcntl(pipe.in->get(), F_GETPIPE_SZ), size);
}

TEST(WriteAll, NothingIsWrittenOfNothing) {
  errno = 0;
  EXPECT_TRUE(write_all(-1, {}));
  EXPECT_TRUE(write_all_at(-1, 7, {}));
  EXPECT_EQ(errno, 0);
}

TEST_F(FileTest, ReadsBackWhatWasWrittenAndLeavesNoTemporaryFile) {
  ASSERT_TRUE(write_file_atomically(path("a"), std::string_view("first")).ok());
  ASSERT_TRUE(write_file_atomically(path("a"), std::string_view("second, longer")).ok());
  auto bytes = read_file(path("a"), 100);
  ASSERT_TRUE(bytes.ok()) << bytes.error().message;
  EXPECT_EQ(text_of(*bytes), "second, longer");
  EXPECT_EQ(files(), 1u);
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
  EXPECT_EQ(files(), 1u);
  struct stat info {};
  ASSERT_EQ(::stat(path("key").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777u, 0600u);
}

TEST_F(FileTest, WhatIsNoRegularFileIsNotReplaced) {
  ASSERT_TRUE(std::filesystem::create_directory(path("folder")));
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  ASSERT_LT(path("socket").size(), sizeof address.sun_path);
  path("socket").copy(address.sun_path, sizeof address.sun_path - 1);
  const Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  std::filesystem::create_symlink("/dev/null", path("link to a device"));
  std::filesystem::create_symlink("pipe", path("link to a pipe"));
  const std::size_t entries = files();
  for (const auto& [name, kind] :
       {std::pair{"folder", "a folder"}, std::pair{"pipe", "a named pipe"}, std::pair{"socket", "a socket"},
        std::pair{"link to a device", "a device"}, std::pair{"link to a pipe", "a named pipe"}}) {
    const auto before = std::filesystem::symlink_status(path(name)).type();
    const Status status = write_file_atomically(path(name), std::string_view("x"));
    ASSERT_FALSE(status.ok()) << name;
    EXPECT_EQ(status.error().kind, ErrorKind::kCaller);
    EXPECT_EQ(status.error().message,
              fmt::format("cannot replace {}: it is {}, not a regular file; choose another path", path(name),
                          kind));
    auto created = create_file_atomically(path(name), std::vector<std::uint8_t>{1}, 0600);
    EXPECT_TRUE(created.ok() && !*created) << name;
    EXPECT_EQ(std::filesystem::symlink_status(path(name)).type(), before) << name;
  }
  EXPECT_EQ(files(), entries);
}

TEST_F(FileTest, ALinkIsReplacedAndWhatItLeadsToStays) {
  ASSERT_TRUE(write_file_atomically(path("old"), std::string_view("old")).ok());
  std::filesystem::create_symlink("old", path("link"));
  std::filesystem::create_symlink("nothing", path("dangling link"));
  for (const char* name : {"link", "dangling link"}) {
    ASSERT_TRUE(write_file_atomically(path(name), std::string_view("new")).ok()) << name;
    EXPECT_TRUE(std::filesystem::is_regular_file(std::filesystem::symlink_status(path(name)))) << name;
    EXPECT_EQ(text_of(*read_file(path(name), 10)), "new") << name;
  }
  EXPECT_EQ(text_of(*read_file(path("old"), 10)), "old");
  EXPECT_EQ(files(), 3u);
  std::filesystem::create_symlink("loop", path("loop"));
  const Status loop = check_replaceable(path("loop"));
  ASSERT_FALSE(loop.ok());
  EXPECT_EQ(loop.error().kind, ErrorKind::kEnvironment);
}

TEST_F(FileTest, WritesAtAPlaceAndOnFromThereAfterAShortWrite) {
  const auto bytes = numbered_bytes(1000);
  const Descriptor fd(::open(path("a").c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  ASSERT_TRUE(fd.valid());
  ASSERT_TRUE(write_all_at(fd.get(), 10, bytes));
  EXPECT_EQ(::lseek(fd.get(), 0, SEEK_CUR), 0);
  std::vector<std::uint8_t> expected(10);
  expected.insert(expected.end(), bytes.begin(), bytes.end());
  EXPECT_EQ(*read_file(path("a"), 2000), expected);

  ASSERT_EQ(::ftruncate(fd.get(), 0), 0);
  // The first call writes up to the limit, the next one would begin there.
  EXPECT_TRUE(
      holds_with_files_of_at_most(700, [&] { return !write_all_at(fd.get(), 10, bytes) && errno == EFBIG; }));
  expected.resize(700);
  EXPECT_EQ(*read_file(path("a"), 2000), expected);
}

TEST_F(FileTest, AFullDiskIsReportedAndTheOldFileStays) {
  ASSERT_TRUE(write_file_atomically(path("a"), std::string_view("old")).ok());
  EXPECT_TRUE(holds_with_files_of_at_most(1024, [&] {
    const Status status = write_file_atomically(path("a"), std::string(4096, 'x'));
    return !status.ok() && status.error().kind == ErrorKind::kEnvironment;
  }));
  EXPECT_EQ(text_of(*read_file(path("a"), 10)), "old");
  EXPECT_EQ(files(), 1u);
}

}  // namespace
}  // namespace fieldprint
