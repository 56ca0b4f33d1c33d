#include "sampler/sampler.h"

#include <algorithm>
#include <cmath>

#include "exact/arith.h"
#include "sampler/philox.h"

namespace fieldprint::sampler {
namespace {

constexpr double kLn2 = 0.6931471805599453;
constexpr std::size_t kFirstSorted = 256;

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

/// The largest logit, of equal ones the first; a NaN where there is one.
std::int32_t most_likely(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] <= logits[best]) continue;
    if (std::isnan(logits[best])) break;
    best = i;
  }
  return static_cast<std::int32_t>(best);
}

/// The fraction as an integer in units of 2^-32; exact, since a float has 24 significant bits and is rounded
/// up.
std::uint64_t fixed32(float fraction) {
  return static_cast<std::uint64_t>(std::ceil(static_cast<double>(fraction) * 4294967296.0));
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

  /// Keeps the fewest preferred candidates whose probabilities reach `fraction` of the sum.
  void keep_top_p(float fraction) {
    if (fraction >= 1.0F) return;
    const Wide scaled = static_cast<Wide>(total()) * fixed32(fraction);
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

  void keep_min_p(float fraction) {
    if (fraction <= 0.0F) return;
    const auto least = static_cast<std::uint64_t>(
        std::ceil(static_cast<double>(fraction) * static_cast<double>(exact::kProbabilityOne)));
    std::erase_if(ids_, [&](std::int32_t id) { return probability(id) < least; });
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

void penalise(std::span<float> logits, std::span<const std::int32_t> history, float penalty) {
  std::vector<bool> done(logits.size());
  for (const std::int32_t token : history) {
    const std::size_t i = static_cast<std::size_t>(token);
    if (done[i]) continue;
    done[i] = true;
    logits[i] = logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
  }
}

void add_logprobs(Pick& pick, const LogitRow& row, std::int32_t maximum, std::int32_t count) {
  std::uint64_t sum = 0;
  for (const std::int32_t p : row.probabilities(exact::kLog2E)) sum += static_cast<std::uint64_t>(p);
  const double log2_sum = exact::log2_of(sum) - 30.0;
  const float top = row.logits[static_cast<std::size_t>(maximum)];
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

Result<Pick> pick(const LogitRow& given, const SamplingSettings& settings,
                  std::span<const std::int32_t> history, std::int32_t logprobs) {
  LogitRow row = given;
  std::vector<float> penalised;
  if (settings.repetition_penalty != 1.0F) {
    penalised.assign(row.logits.begin(), row.logits.end());
    penalise(penalised, history, settings.repetition_penalty);
    row.replace(penalised);
    row.logits = penalised;
  }
  const std::int32_t maximum = most_likely(row.logits);
  if (!std::isfinite(row.logits[static_cast<std::size_t>(maximum)])) {
    return environment_error(
        "the model's output is not finite; the model file does not suit this architecture");
  }
  Pick pick;
  pick.token = maximum;
  if (settings.temperature > 0) {
    Candidates candidates(row.logits, row.probabilities(exact::kLog2E / settings.temperature));
    candidates.keep_top_k(settings.top_k);
    candidates.keep_top_p(settings.top_p);
    candidates.keep_min_p(settings.min_p);
    pick.token = candidates.draw(philox(settings.seed, history.size()));
  }
  if (logprobs >= 0) add_logprobs(pick, row, maximum, logprobs);
  return pick;
}

}  // namespace fieldprint::sampler
