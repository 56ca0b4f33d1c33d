#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "backend/select.h"
#include "base/bounds.h"
#include "base/file.h"
#include "exact/format.h"
#include "vectors/golden.h"

namespace fieldprint::vectors {
namespace {

std::string committed() {
  const auto file = read_file(FIELDPRINT_VECTORS, bounds::kMaxTextBytes);
  EXPECT_TRUE(file.ok()) << "make_vectors makes it";
  return file ? std::string(file->begin(), file->end()) : std::string();
}

std::vector<Vector> computed_by(const std::string& name, int threads) {
  auto backend = backend::select_backend(name, threads);
  EXPECT_TRUE(backend.ok());
  return compute(**backend);
}

class EveryBackend : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Here, EveryBackend, ::testing::ValuesIn(backend::available_backends()),
                         [](const auto& backend) { return backend.param; });

/// Read by a JSON parser, so that the file is tested by other code than what wrote it.
TEST_P(EveryBackend, GivesTheCommittedVectors) {
  const nlohmann::json file = nlohmann::json::parse(committed());
  EXPECT_EQ(file["canon"], exact::kCanonVersion);
  const std::vector<Vector> computed = computed_by(GetParam(), 2);
  ASSERT_EQ(file["vectors"].size(), computed.size());
  for (std::size_t i = 0; i < computed.size(); ++i) {
    const nlohmann::json& expected = file["vectors"][i];
    EXPECT_EQ(expected["name"], computed[i].name);
    EXPECT_EQ(expected["count"], computed[i].count);
    EXPECT_EQ(expected["first"], computed[i].first) << computed[i].name;
    EXPECT_EQ(expected["sha256"], to_hex(computed[i].sha256))
        << computed[i].name << ": " << computed[i].inputs;
  }
}

TEST(GoldenVectors, TheCommittedFileIsMadeByteForByte) {
  EXPECT_TRUE(to_json(computed_by("scalar", 1)) == committed())
      << "run make_vectors, and read the difference";
}

TEST(GoldenVectors, NamesAreUniqueAndNoOutputIsEmpty) {
  std::set<std::string> names;
  for (const Vector& vector : computed_by("scalar", 1)) {
    EXPECT_TRUE(names.insert(vector.name).second) << vector.name;
    EXPECT_GT(vector.count, 0U) << vector.name;
  }
}

}  // namespace
}  // namespace fieldprint::vectors
