#include "backend/select.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <sstream>

namespace fieldprint::backend {
namespace {

/// Sets FIELDPRINT_BACKEND for a scope; null removes it.
class ForcedBackend {
 public:
  explicit ForcedBackend(const char* name) {
    const char* before = std::getenv(kVariable);
    if (before != nullptr) before_ = before;
    set(name);
  }
  ~ForcedBackend() { set(before_ ? before_->c_str() : nullptr); }
  ForcedBackend(const ForcedBackend&) = delete;
  ForcedBackend& operator=(const ForcedBackend&) = delete;

 private:
  static constexpr const char* kVariable = "FIELDPRINT_BACKEND";
  static void set(const char* name) {
    if (name == nullptr) {
      unsetenv(kVariable);
    } else {
      setenv(kVariable, name, 1);
    }
  }
  std::optional<std::string> before_;
};

TEST(SelectBackend, ScalarRunsEverywhereAndIsTheSlowest) {
  const std::vector<std::string> names = available_backends();
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(names.back(), "scalar");
}

/// What Linux says of the processor; empty where it does not.
std::set<std::string> cpu_flags() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    return {std::istream_iterator<std::string>(words), {}};
  }
  return {};
}

bool offered(const char* name) {
  const std::vector<std::string> names = available_backends();
  return std::find(names.begin(), names.end(), name) != names.end();
}

TEST(SelectBackend, Avx2IsOfferedWhereTheKernelSeesAllThatItsKernelsUse) {
  const std::set<std::string> flags = cpu_flags();
  if (flags.empty()) GTEST_SKIP() << "/proc/cpuinfo lists no flags";
  EXPECT_EQ(offered("avx2"), flags.contains("avx2") && flags.contains("fma") && flags.contains("f16c"));
}

/// The kernel may refuse the tile registers to this process, but nothing else may stand in the way.
TEST(SelectBackend, AmxIsOfferedWhereTheKernelSeesTilesUnlessItRefusesThem) {
  const std::set<std::string> flags = cpu_flags();
  if (flags.empty()) GTEST_SKIP() << "/proc/cpuinfo lists no flags";
  const bool seen = flags.contains("amx_tile") && flags.contains("amx_int8");
  if (!seen || !offered("avx512")) {
    EXPECT_FALSE(offered("amx"));
    return;
  }
  const auto refused = select_backend("amx", 1);
  EXPECT_TRUE(refused.ok() || refused.error().message.find("the kernel refuses") != std::string::npos);
}

TEST(SelectBackend, EveryAvailableOneCanBeChosenByName) {
  const ForcedBackend forced("none of them");
  for (const std::string& name : available_backends()) {
    auto backend = select_backend(name, 1);
    ASSERT_TRUE(backend.ok()) << name;
    EXPECT_EQ((*backend)->name(), name);
  }
}

TEST(SelectBackend, WithoutANameTheFastestIsTaken) {
  const ForcedBackend none(nullptr);
  auto backend = select_backend("", 0);
  ASSERT_TRUE(backend.ok());
  EXPECT_EQ((*backend)->name(), available_backends().front());
}

TEST(SelectBackend, TheEnvironmentDecidesWhereNoNameIsGiven) {
  const ForcedBackend forced("scalar");
  auto backend = select_backend("", 1);
  ASSERT_TRUE(backend.ok());
  EXPECT_EQ((*backend)->name(), "scalar");
}

TEST(SelectBackend, AnUnknownNameIsRefusedWithTheKnownOnes) {
  for (const char* name : {"cuda13", "Scalar", "avx"}) {
    const auto backend = select_backend(name, 1);
    ASSERT_FALSE(backend.ok()) << name;
    EXPECT_EQ(backend.error().kind, ErrorKind::kCaller);
    const std::string& message = backend.error().message;
    EXPECT_EQ(message.find("there is no backend '" + std::string(name) + "'; choose one of: "), 0U);
    for (const std::string& known : available_backends()) {
      EXPECT_NE(message.find(known), std::string::npos) << known;
    }
  }
}

TEST(SelectBackend, AWrongNameInTheEnvironmentIsNotPassedOver) {
  const ForcedBackend forced("fast");
  const auto backend = select_backend("", 1);
  ASSERT_FALSE(backend.ok());
  EXPECT_NE(backend.error().message.find("'fast'"), std::string::npos);
}

TEST(SelectBackend, OneThatThisMachineLacksIsRefusedWithWhatItNeeds) {
  const std::vector<std::string> here = available_backends();
  int lacking = 0;
  for (const std::string name : {"cuda", "amx", "avx512", "avx2"}) {
    if (std::find(here.begin(), here.end(), name) != here.end()) continue;
    ++lacking;
    const auto backend = select_backend(name, 1);
    ASSERT_FALSE(backend.ok());
    EXPECT_EQ(backend.error().kind, ErrorKind::kCaller);
    EXPECT_EQ(backend.error().message.find("backend " + name + " needs "), 0U) << backend.error().message;
  }
  if (lacking == 0) GTEST_SKIP() << "this machine runs every backend";
}

TEST(SelectBackend, EveryOneIsOfferedOrSaysWhatItNeeds) {
  std::vector<std::string> available;
  for (const BackendOffer& offer : backend_offers()) {
    if (offer.obstacle.empty()) {
      available.push_back(offer.name);
    } else {
      EXPECT_EQ(offer.obstacle.find("needs "), 0U) << offer.obstacle;
    }
  }
  EXPECT_EQ(available, available_backends());
}

TEST(SelectBackend, ANegativeNumberOfThreadsIsRefused) {
  const auto backend = select_backend("scalar", -1);
  ASSERT_FALSE(backend.ok());
  EXPECT_EQ(backend.error().kind, ErrorKind::kCaller);
}

}  // namespace
}  // namespace fieldprint::backend
