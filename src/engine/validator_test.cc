#include "engine/validator.h"

#include <gtest/gtest.h>

namespace fieldprint::engine {
namespace {

using Commit = commit::Protocol::Commit;

std::vector<Commit> due(Validator& validator) {
  std::vector<Commit> commits;
  for (const Verdict& verdict : validator.take_due()) commits.push_back(verdict.commit);
  return commits;
}

Digest leaf(std::uint8_t number) { return sha256(std::string(1, static_cast<char>(number))); }

TEST(Validator, AVerdictIsDueWhenACommitIsDurableAndItsPagesAreCheckedInEitherOrder) {
  Validator validator(0, {});
  validator.pages_checked(1, 2, 9);
  EXPECT_FALSE(validator.due());
  validator.durable({1, 0}, leaf(0), false);
  validator.durable({1, 1}, leaf(1), false);
  validator.durable({1, 2}, leaf(2), false);
  EXPECT_EQ(due(validator), (std::vector<Commit>{{1, 0}, {1, 1}}));
  EXPECT_FALSE(validator.due());
  validator.pages_checked(1, 3, 10);
  const std::vector<Verdict> verdicts = validator.take_due();
  ASSERT_EQ(verdicts.size(), 1U);
  EXPECT_EQ(verdicts[0].commit, (Commit{1, 2}));
  EXPECT_EQ(verdicts[0].leaf, leaf(2));
  EXPECT_EQ(verdicts[0].blocks, 10);
  EXPECT_EQ(verdicts[0].reexecuted_on, "");
}

TEST(Validator, ASampledCommitHoldsUpThoseAfterItUntilItIsComputedAgain) {
  Validator validator(1, {});
  for (std::uint8_t i = 0; i < 3; ++i) validator.durable({1, i}, leaf(i), true);
  validator.pages_checked(1, 3, 9);
  validator.reexecuted({1, 1}, "scalar");
  EXPECT_FALSE(validator.due());
  validator.reexecuted({1, 0}, "scalar");
  EXPECT_EQ(due(validator), (std::vector<Commit>{{1, 0}, {1, 1}}));
  validator.reexecuted({1, 2}, "");
  EXPECT_EQ(due(validator), (std::vector<Commit>{{1, 2}}));
}

TEST(Validator, WhatIsCutOffGetsNoVerdictAndWhatIsBeforeItDoes) {
  Validator validator(1, {});
  for (std::uint8_t i = 0; i < 3; ++i) validator.durable({1, i}, leaf(i), true);
  validator.pages_checked(1, 3, 9);
  validator.cut({1, 1});
  validator.reexecuted({1, 2}, "scalar");
  validator.reexecuted({1, 0}, "scalar");
  EXPECT_EQ(due(validator), (std::vector<Commit>{{1, 0}}));
}

TEST(Validator, TheShareOfTokensIsSampledAndWhichDependsOnTheSalt) {
  const Validator validator(1.0 / 8, sha256("salt"));
  const Validator same(1.0 / 8, sha256("salt"));
  const Validator other(1.0 / 8, sha256("pepper"));
  int sampled = 0;
  int deep = 0;
  int differ = 0;
  for (int i = 0; i < 8000; ++i) {
    const Digest hash = sha256(std::to_string(i));
    sampled += validator.samples(hash, 1) ? 1 : 0;
    deep += validator.samples(hash, 0.25) ? 1 : 0;
    EXPECT_EQ(validator.samples(hash, 1), same.samples(hash, 1));
    differ += validator.samples(hash, 1) != other.samples(hash, 1) ? 1 : 0;
  }
  EXPECT_GT(sampled, 850);
  EXPECT_LT(sampled, 1150);
  EXPECT_GT(deep, 200);
  EXPECT_LT(deep, 300);
  EXPECT_GT(differ, 1000);
  EXPECT_FALSE(Validator(0, {}).samples({}, 1));
  EXPECT_TRUE(Validator(1, {}).samples(sha256("any"), 0));
}

}  // namespace
}  // namespace fieldprint::engine
