#include "base/fault_point.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <set>
#include <string>

namespace fieldprint {
namespace {

// What this program does as a child that was told to pass a place three times.
constexpr char kChild[] = "FIELDPRINT_FAULT_POINT_TEST_CHILD";

int pass_three_times() {
  int failures = 0;
  for (int i = 0; i < 3; ++i) {
    CRASH_POINT("store.grow.committed");
    failures += FAULT_POINT("store.grow.before_commit").ok() ? 0 : 1;
  }
  return 40 + failures;
}

// Becomes such a child with that fault.
[[noreturn]] void run_child(const char* fault) {
  ::setenv("FIELDPRINT_FAULT", fault, 1);
  ::setenv(kChild, "1", 1);
  ::execl("/proc/self/exe", "base_test", "--gtest_filter=FaultPoint.AChildPassesThreeTimes", nullptr);
  ::_exit(99);
}

// The status of such a child.
int status_with(const char* fault) {
  const pid_t child = ::fork();
  if (child == 0) run_child(fault);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST(FaultPoint, AChildPassesThreeTimes) {
  if (std::getenv(kChild) == nullptr) GTEST_SKIP() << "run by the other tests";
  ::_exit(pass_three_times());
}

TEST(FaultPoint, NothingHappensUnarmed) { EXPECT_EQ(pass_three_times(), 40); }

TEST(FaultPoint, AnArmedPlaceKillsAtThePassAskedForAndNoOther) {
  const int killed = status_with("kill:store.grow.committed:3");
  EXPECT_TRUE(WIFSIGNALED(killed) && WTERMSIG(killed) == SIGKILL) << killed;
  const int fourth = status_with("kill:store.grow.committed:4");
  EXPECT_TRUE(WIFEXITED(fourth) && WEXITSTATUS(fourth) == 40) << fourth;
  const int other = status_with("kill:key.created:1");
  EXPECT_TRUE(WIFEXITED(other) && WEXITSTATUS(other) == 40) << other;
}

TEST(FaultPoint, AnArmedPlaceStopsTheProcessUntilItMayGoOn) {
  const pid_t child = ::fork();
  if (child == 0) run_child("stop:store.grow.committed:2");
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  EXPECT_TRUE(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP) << status;
  ASSERT_EQ(::kill(child, SIGCONT), 0);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 40) << status;
}

TEST(FaultPoint, AnArmedPlaceFailsOnce) {
  const int failed = status_with("fail:store.grow.before_commit:2");
  EXPECT_TRUE(WIFEXITED(failed) && WEXITSTATUS(failed) == 41) << failed;
}

TEST(FaultPoint, WhatCannotBeInjectedEndsTheProcessAtOnce) {
  for (const char* fault :
       {"", "kill", "kill:store.grow.committed", "kill:store.grow.committed:0", "kill:nowhere:1",
        "fail:store.grow.committed:1", "pause:store.grow.committed:1", "kill:store.grow.committed:1x"}) {
    const int status = status_with(fault);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 2) << fault << ": " << status;
  }
}

TEST(FaultPoint, NamesAreDistinct) {
  std::set<std::string_view> names;
  for (const fault::Point& point : fault::kPoints) EXPECT_TRUE(names.insert(point.name).second) << point.name;
}

}  // namespace
}  // namespace fieldprint
