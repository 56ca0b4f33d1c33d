#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "backend/ops.h"
#include "exact/format.h"

/// What the vectorised attentions share: the softmax state of a few tokens and how states fold. `Isa` names
/// the vector type of an instruction set and its operations (math.h in that set's folder).
namespace fieldprint::backend::simd {
namespace {

inline constexpr std::int64_t kMaxDim = 256;
inline constexpr std::int64_t kPageTokens = exact::kPageTokens;
inline constexpr std::int64_t kTilePages = exact::kTilePages;
inline constexpr std::int64_t kTileTokens = exact::kTileTokens;

/// In place of the score of a token that a row does not see: so far below any other that it weighs 0.
inline constexpr std::int32_t kUnseenScore = -(1 << 30);

inline constexpr std::uint32_t kInfinityBits = 0x7F800000U;
inline constexpr std::int32_t kScoreMagicBits = 0x4B400000;  // of exact::kScoreMagic

inline float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// The numbers that turn the scores of a row into weights.
struct ScoreUnit {
  float unit;           // log2 units of a score of 1
  float base;           // makes fma(magic + x, unit, base) = exact::kExponentBase + x·unit
  std::int32_t lowest;  // bits of magic + x for the least x that is told from lesser ones
};

inline ScoreUnit score_unit(std::int32_t step) {
  const float count = static_cast<float>(step);
  return {count * exact::kStepUnit, exact::kExponentBase - 3.0F * count,
          kScoreMagicBits - exact::kScoreSpan / step};
}

/// The tile of a segment that begins with its token `start`, in the first of `blocks`. Only the pages
/// [begin, end) of it are looked at.
struct TilePages {
  std::int64_t start;
  std::int64_t begin;
  std::int64_t end;
  const std::uint8_t* pages[kTilePages];
};

/// The same tile less the pages of which none of the rows sees anything: most rows of a prefill see only the
/// first page of their last tile.
template <class Row>
TilePages seen_pages(const TilePages& tile, Row* const* rows, int count) {
  TilePages seen = tile;
  seen.begin = tile.end;
  seen.end = tile.begin;
  for (int n = 0; n < count; ++n) {
    const std::int64_t begin = (rows[n]->first - tile.start) / kPageTokens;
    const std::int64_t end = (rows[n]->last - tile.start + kPageTokens - 1) / kPageTokens;
    if (begin < seen.begin) seen.begin = begin;
    if (end > seen.end) seen.end = end;
  }
  if (seen.begin < tile.begin) seen.begin = tile.begin;
  if (seen.end > tile.end) seen.end = tile.end;
  return seen;
}

/// Softmax over some tokens, as in the scalar backend. `output` is undefined while the state is empty.
struct State {
  float reference;
  float denominator;
  float* output;  // [D]
};

inline void clear(State& state) {
  state.reference = bits_to_float(kInfinityBits | 0x80000000U);
  state.denominator = 0.0F;
}

inline bool empty(const State& state) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &state.reference, sizeof bits);
  return (bits & 0x7FFFFFFFU) == kInfinityBits;
}

/// What a fold does with the two outputs.
enum class Fold {
  kSkip,   // the next part is empty
  kCopy,   // the state is empty
  kAdd,    // next·factor + state
  kRaise,  // state·factor + next
};
struct FoldStep {
  Fold how;
  float factor;
};

/// Folds reference and denominator of a next part into each of N ≤ 4 states: together, because one alone
/// waits for its own results.
template <class Isa, int N>
void fold_scalars(State* const* states, __m128 next_reference, __m128 next_denominator, FoldStep* steps) {
  alignas(16) float references[4] = {};
  alignas(16) float denominators[4] = {};
  for (int n = 0; n < N; ++n) {
    references[n] = states[n]->reference;
    denominators[n] = states[n]->denominator;
  }
  const __m128 reference = _mm_load_ps(references);
  const __m128 denominator = _mm_load_ps(denominators);
  const __m128 headroom = _mm_add_ps(reference, _mm_set1_ps(exact::kFoldHeadroom));
  const __m128 raise = _mm_cmpgt_ps(next_reference, headroom);
  const __m128 rise = _mm_sub_ps(next_reference, reference);
  const __m128 drop = _mm_sub_ps(reference, next_reference);
  const __m128 factor = Isa::exp2_low(_mm_blendv_ps(rise, drop, raise));
  const __m128 scaled = _mm_blendv_ps(next_denominator, denominator, raise);
  const __m128 kept = _mm_blendv_ps(denominator, next_denominator, raise);
  alignas(16) float folded[4];
  alignas(16) float factors[4];
  alignas(16) float next_references[4];
  alignas(16) float next_denominators[4];
  _mm_store_ps(folded, _mm_fmadd_ps(scaled, factor, kept));
  _mm_store_ps(factors, factor);
  _mm_store_ps(next_references, next_reference);
  _mm_store_ps(next_denominators, next_denominator);
  const int raised = _mm_movemask_ps(raise);
  for (int n = 0; n < N; ++n) {
    State& state = *states[n];
    const bool up = (raised >> n & 1) != 0;
    if (empty({next_references[n], 0.0F, nullptr})) {
      steps[n] = {Fold::kSkip, 0.0F};
    } else if (empty(state)) {
      steps[n] = {Fold::kCopy, 0.0F};
      state.reference = next_references[n];
      state.denominator = next_denominators[n];
    } else {
      steps[n] = {up ? Fold::kRaise : Fold::kAdd, factors[n]};
      if (up) state.reference = next_references[n];
      state.denominator = folded[n];
    }
  }
}

/// Folds one vector of channels.
template <class Isa>
void fold_channels(const FoldStep& step, float* state, typename Isa::Floats next) {
  const typename Isa::Floats factor = Isa::broadcast(step.factor);
  if (step.how == Fold::kAdd) Isa::store(state, Isa::fma(next, factor, Isa::load(state)));
  if (step.how == Fold::kRaise) Isa::store(state, Isa::fma(Isa::load(state), factor, next));
  if (step.how == Fold::kCopy) Isa::store(state, next);
}

/// Appends `next` to `state`.
template <class Isa>
void fold(State& state, const State& next, std::int64_t dim) {
  State* const states[] = {&state};
  FoldStep step{};
  fold_scalars<Isa, 1>(states, _mm_set_ss(next.reference), _mm_set_ss(next.denominator), &step);
  if (step.how == Fold::kSkip) return;
  for (std::int64_t d = 0; d < dim; d += Isa::kLanes) {
    fold_channels<Isa>(step, state.output + d, Isa::load(next.output + d));
  }
}

template <class Isa>
void multiply(float* x, float factor, std::int64_t dim) {
  for (std::int64_t d = 0; d < dim; d += Isa::kLanes) {
    Isa::store(x + d, Isa::multiply(Isa::load(x + d), Isa::broadcast(factor)));
  }
}

template <class Isa>
void copy(const float* from, float* to, std::int64_t dim) {
  for (std::int64_t d = 0; d < dim; d += Isa::kLanes) Isa::store(to + d, Isa::load(from + d));
}

template <class Isa>
void fill_zero(float* x, std::int64_t dim) {
  for (std::int64_t d = 0; d < dim; d += Isa::kLanes) Isa::store(x + d, Isa::broadcast(0.0F));
}

/// The one token of the sink, in slot 0 of its page, with scales of its own.
class Sink {
 public:
  Sink(const std::uint8_t* page, const float* factors, std::int64_t dim)
      : keys_(page), key_scale_(factors[kSinkKeyScale]), dim_(dim) {
    const std::uint8_t* values = page + kPageTokens * dim;
    for (std::int64_t d = 0; d < dim; ++d) {
      const auto value = static_cast<std::int8_t>(values[d * kPageTokens]);
      output_[d] = static_cast<float>(exact::kLargestWeight * value) * factors[kSinkValueScale];
    }
  }

  const float* output() const { return output_; }

  float reference(const std::int8_t* q, float unit) const {
    __m128i low = _mm_setzero_si128();
    __m128i high = _mm_setzero_si128();
    for (std::int64_t d = 0; d < dim_; d += 16) {
      const __m256i a = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q + d)));
      const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(keys_ + d)));
      const __m256i products = _mm256_madd_epi16(a, b);
      low = _mm_add_epi32(low, _mm256_castsi256_si128(products));
      high = _mm_add_epi32(high, _mm256_extracti128_si256(products, 1));
    }
    __m128i sum = _mm_add_epi32(low, high);
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4E));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xB1));
    return static_cast<float>(_mm_cvtsi128_si32(sum)) * unit * key_scale_;
  }

 private:
  const std::uint8_t* keys_;
  float key_scale_;
  std::int64_t dim_;
  float output_[kMaxDim];
};

}  // namespace
}  // namespace fieldprint::backend::simd
