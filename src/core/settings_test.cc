#include "core/settings.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "base/bounds.h"

namespace fieldprint::core {
namespace {

const float kNan = std::numeric_limits<float>::quiet_NaN();
const float kInfinity = std::numeric_limits<float>::infinity();

std::optional<SettingError> found(const std::function<void(Request&)>& change) {
  Request request;
  change(request);
  return find_invalid(request);
}

TEST(Settings, TheEndsOfEveryRangeAreAccepted) {
  const std::function<void(Request&)> changes[] = {
      [](Request&) {},
      [](Request& r) { r.sampling.temperature = bounds::kMinTemperature; },
      [](Request& r) { r.sampling.temperature = bounds::kMaxTemperature; },
      [](Request& r) { r.sampling.top_k = bounds::kMaxTopK; },
      [](Request& r) { r.sampling.top_p = std::numeric_limits<float>::denorm_min(); },
      [](Request& r) { r.sampling.min_p = 1; },
      [](Request& r) { r.sampling.repetition_penalty = bounds::kMinRepetitionPenalty; },
      [](Request& r) { r.sampling.repetition_penalty = bounds::kMaxRepetitionPenalty; },
      [](Request& r) {
        r.anchor_bounds = {0, 0};
      },
      [](Request& r) {
        r.anchor_bounds = {0.5F, 0.5F};
      },
      [](Request& r) {
        r.anchor_bounds = {std::nextafter(1.0F, 0.0F), 1};
      },
      [](Request& r) { r.max_tokens = 1; },
      [](Request& r) { r.max_tokens = bounds::kMaxContext; },
      [](Request& r) { r.stop.assign(bounds::kMaxStopStrings, std::string(4096, 'x')); },
  };
  for (const auto& change : changes) {
    const auto error = found(change);
    EXPECT_FALSE(error) << error->message();
  }
}

struct Refusal {
  std::function<void(Request&)> change;
  const char* field;
  const char* message;
};

void expect_refused(std::span<const Refusal> refusals) {
  for (const Refusal& refusal : refusals) {
    const auto error = found(refusal.change);
    ASSERT_TRUE(error) << refusal.message;
    EXPECT_EQ(error->field, refusal.field);
    EXPECT_EQ(error->message(), refusal.message);
  }
}

TEST(Settings, SamplingOutOfItsRangesIsRefusedWithTheRange) {
  const char* temperature = "sampling.temperature";
  const char* penalty = "sampling.repetition_penalty";
  const Refusal refusals[] = {
      {[](Request& r) { r.sampling.temperature = -1; }, temperature,
       "temperature is -1, but must be 0 (greedy) or from 0.001 to 100"},
      {[](Request& r) { r.sampling.temperature = kNan; }, temperature,
       "temperature is nan, but must be 0 (greedy) or from 0.001 to 100"},
      {[](Request& r) { r.sampling.temperature = 101; }, temperature,
       "temperature is 101, but must be 0 (greedy) or from 0.001 to 100"},
      {[](Request& r) { r.sampling.temperature = 1e-39F; }, temperature,
       "temperature is 1e-39, but must be 0 (greedy) or from 0.001 to 100"},
      {[](Request& r) { r.sampling.top_k = -1; }, "sampling.top_k",
       "top-k is -1, but must be from 0 (off) to 1048576"},
      {[](Request& r) { r.sampling.top_p = 0; }, "sampling.top_p",
       "top-p is 0, but must be above 0 and at most 1"},
      {[](Request& r) { r.sampling.top_p = 1.5F; }, "sampling.top_p",
       "top-p is 1.5, but must be above 0 and at most 1"},
      {[](Request& r) { r.sampling.min_p = kNan; }, "sampling.min_p",
       "min-p is nan, but must be from 0 to 1"},
      {[](Request& r) { r.sampling.repetition_penalty = 1e-38F; }, penalty,
       "repetition penalty is 1e-38, but must be from 0.01 to 100"},
      {[](Request& r) { r.sampling.repetition_penalty = kInfinity; }, penalty,
       "repetition penalty is inf, but must be from 0.01 to 100"},
  };
  expect_refused(refusals);
}

TEST(Settings, AnchorBoundsLengthsStopStringsAndInputsOutOfTheirRangesAreRefusedWithTheRange) {
  const char* floor = "anchor_bounds.floor";
  const char* ceiling = "anchor_bounds.ceiling";
  const Refusal refusals[] = {
      {[](Request& r) {
         r.anchor_bounds = {1, 1};
       },
       floor, "the anchor floor is 1, but must be at least 0, below 1 and not above the ceiling of 1"},
      {[](Request& r) {
         r.anchor_bounds = {0.5F, 0.25F};
       },
       floor, "the anchor floor is 0.5, but must be at least 0, below 1 and not above the ceiling of 0.25"},
      {[](Request& r) {
         r.anchor_bounds = {0, 1.5F};
       },
       ceiling, "the anchor ceiling is 1.5, but must be from 0 to 1"},
      {[](Request& r) {
         r.anchor_bounds = {0, kNan};
       },
       ceiling, "the anchor ceiling is nan, but must be from 0 to 1"},
      {[](Request& r) { r.max_tokens = 0; }, "max_tokens",
       "the number of tokens to generate is 0, but must be from 1 to 1048576"},
      {[](Request& r) { r.max_tokens = 2000000; }, "max_tokens",
       "the number of tokens to generate is 2000000, but must be from 1 to 1048576"},
      {[](Request& r) { r.stop.assign(17, "x"); }, "stop",
       "there are 17 stop strings, but at most 16 stop strings are allowed"},
      {[](Request& r) {
         r.stop = {"x", ""};
       },
       "stop[1]", "stop string 2 is empty, but must be 1 to 4096 bytes of UTF-8"},
      {[](Request& r) { r.stop = {std::string(4097, 'x')}; }, "stop[0]",
       "stop string 1 has 4097 bytes, but must be 1 to 4096 bytes of UTF-8"},
      {[](Request& r) { r.stop = {"caf\xe9"}; }, "stop[0]",
       "stop string 1 is not UTF-8, but must be 1 to 4096 bytes of UTF-8"},
      {[](Request& r) {
         r.inputs.assign(1025, {"memory", {}});
       },
       "inputs", "there are 1025 inputs, but at most 1024 inputs are allowed"},
      {[](Request& r) {
         r.inputs = {{"tool_result", {}}, {"rumour", {}}};
       },
       "inputs[1].kind", "the kind of an input is rumour, but must be tool_result or memory"},
  };
  expect_refused(refusals);
}

}  // namespace
}  // namespace fieldprint::core
