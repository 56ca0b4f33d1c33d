#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <random>
#include <vector>

#include "backend/backend.h"
#include "backend/kernel_testing.h"
#include "backend/scalar/quantize.h"
#include "backend/select.h"
#include "sampler/sampler.h"

/// Every backend chooses the token that the sampler's definition chooses with the scalar probabilities.
namespace fieldprint::backend {
namespace {

using testing::Random;

struct Rows {
  std::int32_t vocab;
  std::vector<float> logits;
  std::vector<exact::TokenChoice> choices;
  std::vector<std::uint32_t> seen;

  void add(std::vector<float> row, const exact::TokenChoice& choice, const sampler::SeenTokens& tokens) {
    logits.insert(logits.end(), row.begin(), row.end());
    choices.push_back(choice);
    seen.insert(seen.end(), tokens.words().begin(), tokens.words().end());
  }
};

std::int32_t defined(const Rows& rows, std::size_t row) {
  const auto vocab = static_cast<std::size_t>(rows.vocab);
  const std::span<const float> logits = std::span(rows.logits).subspan(row * vocab, vocab);
  std::vector<float> current(logits.begin(), logits.end());
  std::vector<std::int32_t> p(vocab);
  const sampler::LogitRow access{
      logits,
      [&](float scale) {
        scalar::probabilities({current.data(), rows.vocab, &scale, p.data()}, 0, 1);
        return std::span<const std::int32_t>(p);
      },
      [&](std::span<const float> other) { current.assign(other.begin(), other.end()); }};
  const std::size_t words = static_cast<std::size_t>(exact::seen_words(rows.vocab));
  return sampler::choose(access, rows.choices[row], std::span(rows.seen).subspan(row * words, words));
}

template <class T>
T* put(Backend& backend, const std::vector<T>& host) {
  const auto bytes = static_cast<std::int64_t>(host.size() * sizeof(T));
  std::uint8_t* memory = backend.allocate(bytes);
  backend.upload(memory, host.data(), bytes);
  return reinterpret_cast<T*>(memory);
}

void expect_defined(Backend& backend, const Rows& rows) {
  const std::size_t count = rows.choices.size();
  const float* logits = put(backend, rows.logits);
  const exact::TokenChoice* choices = put(backend, rows.choices);
  const std::uint32_t* seen = put(backend, rows.seen);
  std::int32_t* chosen = put(backend, std::vector<std::int32_t>(count, -7));
  backend.choose({logits, rows.vocab, choices, seen, chosen}, static_cast<std::int32_t>(count));
  std::vector<std::int32_t> tokens(count);
  backend.download(tokens.data(), chosen, static_cast<std::int64_t>(count * 4));
  for (std::size_t i = 0; i < count; ++i) {
    const exact::TokenChoice& c = rows.choices[i];
    EXPECT_EQ(tokens[i], defined(rows, i))
        << "row " << i << " of " << rows.vocab << ": scale " << c.scale << ", top-k " << c.top_k << ", top-p "
        << c.top_p << ", least " << c.least << ", penalty " << c.penalty << ", random " << c.random;
  }
  for (const void* memory : {static_cast<const void*>(logits), static_cast<const void*>(choices),
                             static_cast<const void*>(seen), static_cast<const void*>(chosen)}) {
    backend.release(static_cast<std::uint8_t*>(const_cast<void*>(memory)));
  }
}

/// Shapes in which candidates are many or few, equal or apart.
std::vector<float> random_logits(std::int32_t vocab, Random& random) {
  const auto size = static_cast<std::size_t>(vocab);
  std::vector<float> logits(size);
  switch (random() % 8) {
    case 0:  // ties, many of them for the largest
      for (float& x : logits) x = static_cast<float>(random() % 3);
      break;
    case 1:
      std::fill(logits.begin(), logits.end(), random() % 2 == 0 ? -1.5F : 0.0F);
      break;
    case 2:  // zeros of both signs beside tiny numbers
      for (float& x : logits) x = random() % 3 == 0 ? -0.0F : random() % 2 == 0 ? 0.0F : 0x1p-140F;
      break;
    case 3:  // neighbours: probabilities are equal where logits are not
      for (float& x : logits)
        x = std::bit_cast<float>(0x41200000U + static_cast<std::uint32_t>(random() % 5));
      break;
    case 4:  // a steep slope
      for (std::size_t i = 0; i < size; ++i) logits[i] = 30.0F - static_cast<float>(i) * 0.37F;
      break;
    case 5:
      logits =
          testing::floats_of(static_cast<testing::Values>(random() % testing::kValueKinds), vocab, random);
      break;
    default:  // what models give
      for (float& x : logits) {
        x = 4.0F * (testing::unit_float(random) + testing::unit_float(random) + testing::unit_float(random));
      }
      break;
  }
  if (random() % 4 == 0) logits[random() % size] = -std::numeric_limits<float>::infinity();
  if (random() % 4 == 0) logits[random() % size] = 25.0F;
  return logits;
}

SamplingSettings random_settings(std::int32_t vocab, Random& random) {
  SamplingSettings s;
  s.seed = random();
  if (random() % 8 != 0) s.temperature = random() % 4 == 0 ? 100.0F : random() % 4 == 0 ? 0.001F : 0.3F;
  if (s.temperature == 0.3F) s.temperature += static_cast<float>(random() % 1000) * 0.002F;
  if (random() % 2 == 0)
    s.top_k = static_cast<std::int32_t>(1 + random() % static_cast<std::uint64_t>(vocab));
  if (random() % 4 == 0) s.top_k = static_cast<std::int32_t>(1 + random() % 50);
  if (random() % 2 == 0) s.top_p = static_cast<float>(1 + random() % 1000) * 0.001F;
  if (random() % 16 == 0) s.top_p = std::nextafter(1.0F, 0.0F);
  if (random() % 16 == 0) s.top_p = 1e-30F;
  if (random() % 3 == 0) s.min_p = static_cast<float>(random() % 1001) * 0.001F;
  if (random() % 3 == 0) s.repetition_penalty = random() % 2 == 0 ? 1.3F : random() % 2 == 0 ? 0.01F : 100.0F;
  return s;
}

Rows random_rows(std::int32_t vocab, int count, Random& random) {
  Rows rows{vocab, {}, {}, {}};
  for (int i = 0; i < count; ++i) {
    sampler::SeenTokens seen(vocab);
    const std::size_t history = random() % 2000;
    for (std::size_t j = 0; j < history; ++j) {
      seen.add(static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(vocab)));
    }
    rows.add(random_logits(vocab, random), sampler::choice_of(random_settings(vocab, random), history), seen);
  }
  return rows;
}

class ChooseTest : public ::testing::TestWithParam<std::string> {
 protected:
  ChooseTest() : backend_(std::move(*select_backend(GetParam(), 2))) {}
  std::unique_ptr<Backend> backend_;
};
INSTANTIATE_TEST_SUITE_P(Here, ChooseTest, ::testing::ValuesIn(available_backends()),
                         [](const auto& name) { return name.param; });

TEST_P(ChooseTest, EqualsTheDefinitionOnRandomRows) {
  Random random(1);
  for (const std::int32_t vocab : {1, 2, 31, 32, 33, 127, 1000, 4096, 4097}) {
    expect_defined(*backend_, random_rows(vocab, 60, random));
  }
}

TEST_P(ChooseTest, EqualsTheDefinitionOnLargeVocabularies) {
  Random random(2);
  expect_defined(*backend_, random_rows(49152, 24, random));
  expect_defined(*backend_, random_rows(128256, 24, random));
  expect_defined(*backend_, random_rows(262144, 12, random));
}

/// More probabilities in a bucket than 32 bits hold.
TEST_P(ChooseTest, EqualsTheDefinitionWhereAllAreEquallyLikely) {
  constexpr std::int32_t kVocab = 100003;
  Rows rows{kVocab, {}, {}, {}};
  const sampler::SeenTokens seen(kVocab);
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    SamplingSettings settings{.temperature = 1.0F, .seed = seed};
    if (seed % 3 == 1) settings.top_p = 0.37F;
    if (seed % 3 == 2) settings.top_k = 54321;
    rows.add(std::vector<float>(kVocab, 3.25F), sampler::choice_of(settings, 5), seen);
  }
  expect_defined(*backend_, rows);
}

TEST_P(ChooseTest, RefusesARowWithANanOrAnInfiniteMaximum) {
  constexpr std::int32_t kVocab = 5000;
  const float infinity = std::numeric_limits<float>::infinity();
  Rows rows{kVocab, {}, {}, {}};
  const sampler::SeenTokens seen(kVocab);
  for (const float temperature : {0.0F, 1.0F}) {
    const exact::TokenChoice choice = sampler::choice_of({.temperature = temperature}, 1);
    for (const std::size_t place : {0, 1, 2500, 4999}) {
      for (const float value :
           {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(), infinity}) {
        std::vector<float> row(kVocab, 1.0F);
        row[place] = value;
        rows.add(row, choice, seen);
      }
    }
    rows.add(std::vector<float>(kVocab, -infinity), choice, seen);
  }
  for (std::size_t i = 0; i < rows.choices.size(); ++i) EXPECT_EQ(defined(rows, i), exact::kNoToken);
  expect_defined(*backend_, rows);
}

}  // namespace
}  // namespace fieldprint::backend
