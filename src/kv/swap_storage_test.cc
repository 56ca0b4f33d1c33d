#include "kv/swap_storage.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>

namespace fieldprint::kv {
namespace {

constexpr std::int64_t kBytes = 1000;

std::string path_here(const std::string& name) {
  return (std::filesystem::path(::testing::TempDir()) / (name + "-" + std::to_string(::getpid()))).string();
}

void fill(SwapStorage& storage, std::int64_t slot, std::uint8_t value) {
  std::fill_n(storage.room(slot), kBytes, value);
}

bool holds(SwapStorage& storage, std::int64_t slot, std::uint8_t value) {
  const auto bytes = storage.load(slot);
  return bytes.ok() && std::all_of(*bytes, *bytes + kBytes, [&](std::uint8_t b) { return b == value; });
}

/// The descriptor of a file of this process whose name is gone.
std::string descriptor_of(const std::string& path) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    const auto target = std::filesystem::read_symlink(entry.path(), gone);
    if (!gone && target.string().starts_with(std::filesystem::canonical(::testing::TempDir()).string()) &&
        target.string().ends_with(std::filesystem::path(path).filename().string() + " (deleted)")) {
      return entry.path();
    }
  }
  return "";
}

TEST(SwapStorage, KeepsEachSlotsBytesInMemoryAndInAFile) {
  for (const bool file : {false, true}) {
    const auto storage = file ? swap_file(kBytes, path_here("swap")).value() : swap_memory(kBytes, 5).value();
    for (const std::int64_t slot : {4, 0, 2}) {
      fill(*storage, slot, static_cast<std::uint8_t>(slot + 1));
      ASSERT_TRUE(storage->store(slot).ok());
    }
    for (const std::int64_t slot : {0, 2, 4}) {
      EXPECT_TRUE(holds(*storage, slot, static_cast<std::uint8_t>(slot + 1))) << slot;
    }
  }
}

TEST(SwapStorage, AFileIsForItsUserOnlyAndLosesItsNameAtOnce) {
  const std::string path = path_here("private");
  const auto storage = swap_file(kBytes, path).value();
  EXPECT_FALSE(std::filesystem::exists(path));
  struct ::stat found {};
  ASSERT_EQ(::stat(descriptor_of(path).c_str(), &found), 0);
  EXPECT_EQ(found.st_mode & 0777U, 0600U);
}

TEST(SwapStorage, WhatIsThereIsNotTakenForASwapFile) {
  const std::string path = path_here("taken");
  std::ofstream(path) << "something of value";
  const auto refused = swap_file(kBytes, path);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::kCaller);
  EXPECT_NE(refused.error().message.find(path), std::string::npos);
  EXPECT_EQ(std::filesystem::file_size(path), 18U);
  std::filesystem::remove(path);
  const auto lost = swap_file(kBytes, path + "/no/folder");
  ASSERT_FALSE(lost.ok());
  EXPECT_EQ(lost.error().kind, ErrorKind::kCaller);
  const auto device = swap_file(kBytes, "/proc/self/swap");
  ASSERT_FALSE(device.ok());
}

TEST(SwapStorage, AFileThatMayNotGrowSaysSoAndGoesOnBelowThat) {
  const auto storage = swap_file(kBytes, path_here("full")).value();
  ::rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ::rlimit small = before;
  small.rlim_cur = 2 * kBytes + 100;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  fill(*storage, 0, 7);
  const Status fits = storage->store(0);
  fill(*storage, 2, 8);
  const Status stored = storage->store(2);
  fill(*storage, 1, 9);
  const Status again = storage->store(1);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_TRUE(fits.ok());
  ASSERT_FALSE(stored.ok());
  EXPECT_EQ(stored.error().kind, ErrorKind::kEnvironment);
  EXPECT_NE(stored.error().message.find("cannot write the swap file"), std::string::npos);
  EXPECT_TRUE(again.ok());
  EXPECT_TRUE(holds(*storage, 0, 7));
  EXPECT_TRUE(holds(*storage, 1, 9));
}

TEST(SwapStorage, AFileThatWasCutSaysSo) {
  const std::string path = path_here("cut");
  const auto storage = swap_file(kBytes, path).value();
  for (const std::int64_t slot : {0, 1}) {
    fill(*storage, slot, 3);
    ASSERT_TRUE(storage->store(slot).ok());
  }
  ASSERT_EQ(::truncate(descriptor_of(path).c_str(), kBytes + 10), 0);
  EXPECT_TRUE(holds(*storage, 0, 3));
  const auto bytes = storage->load(1);
  ASSERT_FALSE(bytes.ok());
  EXPECT_EQ(bytes.error().kind, ErrorKind::kEnvironment);
  EXPECT_NE(bytes.error().message.find("it ends early"), std::string::npos);
}

}  // namespace
}  // namespace fieldprint::kv
