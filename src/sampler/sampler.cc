#include "sampler/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "exact/arith.h"
#include "sampler/philox.h"

namespace fieldprint::sampler {
namespace {

constexpr double kLn2 = 0.6931471805599453;
constexpr std::size_t kFirstSorted = 256;
constexpr std::int32_t kMagnitude = 0x7FFFFFFF;
constexpr std::int32_t kInfinity = 0x7F800000;
constexpr std::uint64_t kWhole32 = std::uint64_t{1} << 32;

__extension__ using Wide = unsigned __int128;

/// Candidates in the order of preference: larger logit, then smaller id.
struct Preferred {
  std::span<const float> logits;
  bool operator()(std::int32_t a, std::int32_t b) const {
    const float x = logits[static_cast<std::size_t>(a)];
    const float y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  }
};

/// The largest logit, of equal ones the first; a NaN where there is one. Looks twice, first without branches
/// at integers in the order of the floats, because a vocabulary is long.
std::int32_t most_likely(std::span<const float> logits) {
  std::int32_t largest = std::numeric_limits<std::int32_t>::min();
  std::int32_t magnitude = 0;
  for (const float logit : logits) {
    // Adding zero makes one zero of two.
    const auto bits = std::bit_cast<std::int32_t>(logit + 0.0F);
    const std::int32_t key = bits ^ ((bits >> 31) & kMagnitude);
    largest = key > largest ? key : largest;
    magnitude = (bits & kMagnitude) > magnitude ? bits & kMagnitude : magnitude;
  }
  const bool has_nan = magnitude > kInfinity;
  const auto best = std::bit_cast<float>(largest ^ ((largest >> 31) & kMagnitude));
  const auto found = std::find_if(logits.begin(), logits.end(),
                                  [&](float logit) { return has_nan ? std::isnan(logit) : logit == best; });
  return static_cast<std::int32_t>(found - logits.begin());
}

/// The fraction in units of 1/`units`, a power of two: exact, since a float has 24 significant bits, and
/// rounded up.
std::uint64_t fixed(float fraction, double units) {
  return static_cast<std::uint64_t>(std::ceil(static_cast<double>(fraction) * units));
}

class Candidates {
 public:
  Candidates(std::span<const float> logits, std::span<const std::int32_t> p) : logits_(logits), p_(p) {
    for (std::size_t i = 0; i < p.size(); ++i) {
      if (p[i] > 0) ids_.push_back(static_cast<std::int32_t>(i));
    }
  }

  void keep_top_k(std::int32_t k) {
    const std::size_t count = static_cast<std::size_t>(k);
    if (k == 0 || count >= ids_.size()) return;
    std::nth_element(ids_.begin(), ids_.begin() + k, ids_.end(), Preferred{logits_});
    ids_.resize(count);
  }

  /// Keeps the fewest preferred candidates whose probabilities reach `fraction` / 2^32 of the sum.
  void keep_top_p(std::uint64_t fraction) {
    if (fraction >= kWhole32) return;
    const Wide scaled = static_cast<Wide>(total()) * fraction;
    const std::uint64_t wanted = static_cast<std::uint64_t>((scaled + 0xFFFFFFFFU) >> 32);
    std::uint64_t sum = 0;
    std::size_t kept = 0;
    for (std::size_t sorted = 0; kept < ids_.size() && sum < wanted; ++kept) {
      if (kept == sorted) {
        sorted = std::min(std::max(kFirstSorted, sorted * 4), ids_.size());
        std::partial_sort(ids_.begin() + static_cast<std::ptrdiff_t>(kept),
                          ids_.begin() + static_cast<std::ptrdiff_t>(sorted), ids_.end(), Preferred{logits_});
      }
      sum += probability(ids_[kept]);
    }
    ids_.resize(std::max<std::size_t>(kept, 1));
  }

  void keep_min_p(std::int32_t least) {
    std::erase_if(ids_, [&](std::int32_t id) { return p_[static_cast<std::size_t>(id)] < least; });
  }

  /// The candidate at `random`/2^64 of the cumulated probabilities, in the order of ids.
  std::int32_t draw(std::uint64_t random) {
    std::sort(ids_.begin(), ids_.end());
    std::uint64_t target = static_cast<std::uint64_t>(static_cast<Wide>(random) * total() >> 64);
    for (const std::int32_t id : ids_) {
      if (target < probability(id)) return id;
      target -= probability(id);
    }
    CHECK(false, "the drawn number lies past the sum of the probabilities");
    return ids_.back();
  }

 private:
  std::uint64_t probability(std::int32_t id) const {
    return static_cast<std::uint64_t>(p_[static_cast<std::size_t>(id)]);
  }
  std::uint64_t total() const {
    std::uint64_t sum = 0;
    for (const std::int32_t id : ids_) sum += probability(id);
    return sum;
  }

  std::span<const float> logits_;
  std::span<const std::int32_t> p_;
  std::vector<std::int32_t> ids_;
};

void penalise(std::span<float> logits, std::span<const std::uint32_t> seen, float penalty) {
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if ((seen[i / 32] >> i % 32 & 1U) == 0) continue;
    logits[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
  }
}

/// A row whose seen tokens are penalised.
class PenalisedRow {
 public:
  PenalisedRow(const LogitRow& given, std::span<const std::uint32_t> seen, float penalty) : row_(given) {
    if (penalty == 1.0F) return;
    logits_.assign(row_.logits.begin(), row_.logits.end());
    penalise(logits_, seen, penalty);
    row_.replace(logits_);
    row_.logits = logits_;
  }
  const LogitRow& get() const { return row_; }

 private:
  LogitRow row_;
  std::vector<float> logits_;
};

std::int32_t choose_penalised(const LogitRow& row, const exact::TokenChoice& choice) {
  const std::int32_t maximum = most_likely(row.logits);
  if (!std::isfinite(row.logits[static_cast<std::size_t>(maximum)])) return exact::kNoToken;
  if (choice.scale == 0.0F) return maximum;
  Candidates candidates(row.logits, row.probabilities(choice.scale));
  candidates.keep_top_k(choice.top_k);
  candidates.keep_top_p(choice.top_p);
  candidates.keep_min_p(choice.least);
  return candidates.draw(choice.random);
}

void add_logprobs(Pick& pick, const LogitRow& row, std::int32_t count) {
  std::uint64_t sum = 0;
  for (const std::int32_t p : row.probabilities(exact::kLog2E)) sum += static_cast<std::uint64_t>(p);
  const double log2_sum = exact::log2_of(sum) - 30.0;
  const float top = row.logits[static_cast<std::size_t>(most_likely(row.logits))];
  const auto logprob = [&](std::int32_t token) {
    const float below = row.logits[static_cast<std::size_t>(token)] - top;
    return static_cast<float>(static_cast<double>(below) - log2_sum * kLn2);
  };
  pick.logprob = logprob(pick.token);
  std::vector<std::int32_t> ids(row.logits.size());
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i);
  const std::ptrdiff_t wanted = std::min<std::ptrdiff_t>(count, static_cast<std::ptrdiff_t>(ids.size()));
  std::partial_sort(ids.begin(), ids.begin() + wanted, ids.end(), Preferred{row.logits});
  for (std::ptrdiff_t i = 0; i < wanted; ++i) {
    const std::int32_t id = ids[static_cast<std::size_t>(i)];
    pick.most_likely.push_back({id, logprob(id)});
  }
}

}  // namespace

exact::TokenChoice choice_of(const SamplingSettings& settings, std::size_t history_tokens) {
  const bool greedy = settings.temperature == 0.0F;
  return {.penalty = settings.repetition_penalty,
          .scale = greedy ? 0.0F : exact::kLog2E / settings.temperature,
          .top_k = settings.top_k,
          .least = static_cast<std::int32_t>(fixed(settings.min_p, exact::kProbabilityOne)),
          .top_p = fixed(settings.top_p, static_cast<double>(kWhole32)),
          .random = greedy ? 0 : philox(settings.seed, history_tokens)};
}

std::int32_t choose(const LogitRow& row, const exact::TokenChoice& choice,
                    std::span<const std::uint32_t> seen) {
  return choose_penalised(PenalisedRow(row, seen, choice.penalty).get(), choice);
}

Error not_finite() {
  return environment_error(
      "the model's output is not finite; the model file does not suit this architecture");
}

Result<Pick> pick(const LogitRow& given, const SamplingSettings& settings,
                  std::span<const std::int32_t> history, std::int32_t logprobs) {
  const exact::TokenChoice choice = choice_of(settings, history.size());
  SeenTokens seen(static_cast<std::int32_t>(given.logits.size()));
  if (choice.penalty != 1.0F) seen.add(history);
  const PenalisedRow row(given, seen.words(), choice.penalty);
  Pick pick;
  pick.token = choose_penalised(row.get(), choice);
  if (pick.token == exact::kNoToken) return not_finite();
  if (logprobs >= 0) add_logprobs(pick, row.get(), logprobs);
  return pick;
}

}  // namespace fieldprint::sampler
