#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "eval/tiny_model_testing.h"

namespace fieldprint::eval {
namespace {

using testing::TinyImport;
using weights::Architecture;
using weights::testing::TinyModel;

constexpr double kTiny = 1e-6;

class Perplexity : public ::testing::Test {
 protected:
  Result<PerplexityReport> measure(std::string_view text, const PerplexityOptions& options) {
    return perplexity(tiny_.file(), tiny_.backend(), *reference_, text, options, {});
  }

  TinyImport tiny_{TinyModel{}};
  std::unique_ptr<FloatModel> reference_ = tiny_.float_model();
};

TEST(CompareRows, GivesTheLossesOfKnownProbabilities) {
  // Probabilities 1/2, 1/4, 1/8, 1/8 against the uniform ones.
  constexpr float kLn2 = 0.69314718F;
  const std::array<float, 4> canonical = {3 * kLn2, 2 * kLn2, kLn2, kLn2};
  const std::array<float, 4> reference = {5, 5, 5, 5};
  const RowComparison row = compare_rows(canonical, reference, 1);
  EXPECT_NEAR(row.canonical_loss, std::log(4.0), kTiny);
  EXPECT_NEAR(row.reference_loss, std::log(4.0), kTiny);
  // Σ 1/4·ln((1/4)/p) = 1/4·(ln 1/2 + 0 + ln 2 + ln 2)
  EXPECT_NEAR(row.divergence, std::log(2.0) / 4, kTiny);
  EXPECT_EQ(row.canonical_top1, 0);
  EXPECT_NEAR(compare_rows(canonical, reference, 2).canonical_loss, std::log(8.0), kTiny);
}

TEST(CompareRows, IsBlindToAConstantAddedToTheLogits) {
  const std::array<float, 3> row = {1, -2, 0.5};
  const std::array<float, 3> shifted = {1001, 998, 1000.5};
  const RowComparison same = compare_rows(row, shifted, 2);
  EXPECT_NEAR(same.divergence, 0, kTiny);
  EXPECT_NEAR(same.canonical_loss, same.reference_loss, kTiny);
  EXPECT_EQ(same.canonical_top1, same.reference_top1);
}

TEST_F(Perplexity, CutsTheTextIntoWindowsThatBeginWithBos) {
  const auto report = measure("thequickbrownfoxjumpsoverthelazydog", {.context = 10, .tokens = 23});
  ASSERT_TRUE(report.ok()) << report.error().message;
  ASSERT_EQ(report->windows.size(), 3U);
  EXPECT_EQ(report->windows[0].tokens.size(), 10U);
  EXPECT_EQ(report->windows[1].tokens.size(), 10U);
  EXPECT_EQ(report->windows[2].tokens.size(), 6U);
  for (const PerplexityWindow& window : report->windows) {
    EXPECT_EQ(window.tokens[0], 1);
    EXPECT_EQ(window.canonical_top1.size(), window.tokens.size());
  }
  EXPECT_EQ(report->tokens, 23);
}

TEST(PerplexityWithoutBos, LeavesOutALastWindowThatPredictsNothing) {
  auto builder = TinyModel{}.builder();
  const TinyImport tiny(builder.set_bool("tokenizer.ggml.add_bos_token", false));
  const auto reference = tiny.float_model();
  const auto report =
      perplexity(tiny.file(), tiny.backend(), *reference, "qqqqqqq", {.context = 3, .tokens = 0}, {});
  ASSERT_TRUE(report.ok()) << report.error().message;
  ASSERT_EQ(report->windows.size(), 2U);
  for (const PerplexityWindow& window : report->windows) EXPECT_EQ(window.tokens.size(), 3U);
  EXPECT_EQ(report->tokens, 4);
}

TEST_F(Perplexity, OfFloat32IsTheExponentOfItsMeanLoss) {
  const auto report = measure("theabcabcthe", {.context = 64, .tokens = 0});
  ASSERT_TRUE(report.ok()) << report.error().message;
  ASSERT_EQ(report->windows.size(), 1U);
  const std::vector<std::int32_t>& tokens = report->windows[0].tokens;
  reference_->forward(tokens);
  double loss = 0;
  for (std::size_t i = 0; i + 1 < tokens.size(); ++i) {
    const auto row = reference_->logits(static_cast<std::int64_t>(i), 1);
    double sum = 0;
    for (const float logit : row) sum += std::exp(static_cast<double>(logit));
    loss += std::log(sum) - static_cast<double>(row[static_cast<std::size_t>(tokens[i + 1])]);
  }
  EXPECT_NEAR(report->reference, std::exp(loss / static_cast<double>(tokens.size() - 1)),
              1e-5 * report->reference);
  EXPECT_EQ(report->tokens, static_cast<std::int64_t>(tokens.size()) - 1);
  EXPECT_DOUBLE_EQ(report->ratio, report->canonical / report->reference);
  // Random weights: the loose bound of the float model's own test.
  EXPECT_NEAR(report->ratio, 1.0, 0.15);
  EXPECT_GE(report->divergence, 0.0);
}

TEST_F(Perplexity, CountsEveryTokenOnceWhateverTheWindow) {
  const std::string text(500, 'q');
  for (const std::int32_t context : {2, 7, 64, 600}) {
    const auto report = measure(text, {.context = context, .tokens = 0});
    ASSERT_TRUE(report.ok()) << report.error().message;
    EXPECT_EQ(report->tokens, 500) << context;
  }
}

TEST_F(Perplexity, ReportsEachWindowAsItIsDone) {
  std::vector<std::pair<std::int64_t, std::int64_t>> seen;
  const auto report =
      perplexity(tiny_.file(), tiny_.backend(), *reference_, "abcdefgh", {.context = 5, .tokens = 0},
                 [&](std::int64_t done, std::int64_t all) { seen.emplace_back(done, all); });
  ASSERT_TRUE(report.ok());
  const auto all = static_cast<std::int64_t>(report->windows.size());
  ASSERT_EQ(seen.size(), report->windows.size());
  EXPECT_EQ(seen.front(), std::make_pair(std::int64_t{1}, all));
  EXPECT_EQ(seen.back(), std::make_pair(all, all));
}

TEST_F(Perplexity, RefusesWhatCannotBeMeasured) {
  EXPECT_FALSE(measure("", {.context = 64, .tokens = 0}).ok());
  EXPECT_FALSE(measure("the", {.context = 1, .tokens = 0}).ok());
  EXPECT_FALSE(measure("the", {.context = 601, .tokens = 0}).ok());
  EXPECT_FALSE(measure("the", {.context = 64, .tokens = -1}).ok());
  const TinyImport other({.architecture = Architecture::kGemma3});
  const auto foreign = other.float_model();
  const auto report =
      perplexity(tiny_.file(), tiny_.backend(), *foreign, "the", {.context = 64, .tokens = 0}, {});
  ASSERT_FALSE(report.ok());
  EXPECT_EQ(report.error().kind, ErrorKind::kCaller);
}

TEST(Top1Lines, HoldOnePositionALineAndOneWindowAParagraph) {
  PerplexityReport report;
  report.windows = {{{1, 5}, {5, 6}}, {{1, 7}, {8, 9}}};
  EXPECT_EQ(top1_lines(report), "1 5\n5 6\n\n1 8\n7 9\n\n");
}

}  // namespace
}  // namespace fieldprint::eval
