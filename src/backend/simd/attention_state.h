#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "backend/ops.h"
#include "exact/format.h"

/// What the vectorised attentions share: the softmax state of a few tokens and how states merge. `Isa` names
/// the vector type of an instruction set and its operations (math.h in that set's folder).
namespace fieldprint::backend::simd {
namespace {

inline constexpr std::int64_t kMaxDim = 256;
inline constexpr std::int64_t kTokens = exact::kPageTokens;

inline float bits_to_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// Softmax over some tokens, as in the scalar backend. `output` is undefined while the state is empty.
struct State {
  float maximum;
  float denominator;
  float* output;  // [D]
};

inline constexpr std::uint32_t kInfinityBits = 0x7F800000U;

inline void clear(State& state) {
  state.maximum = bits_to_float(kInfinityBits | 0x80000000U);
  state.denominator = 0.0F;
}

inline bool empty(const State& state) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &state.maximum, sizeof bits);
  return (bits & 0x7FFFFFFFU) == kInfinityBits;
}

/// Two factors.
struct Pair {
  float a;
  float b;
};

/// exp2 of two numbers.
template <class Isa>
Pair exp2_pair(float a, float b) {
  const __m128 both = Isa::exp2_low(_mm_set_ps(0.0F, 0.0F, b, a));
  return {_mm_cvtss_f32(both), _mm_cvtss_f32(_mm_movehdup_ps(both))};
}

/// What a merge does with the two outputs: state·a + next·b, or a copy into an empty state.
enum class Merge { kSkip, kCopy, kFold };
struct MergeStep {
  Merge how;
  Pair factor;
};

/// Merges maximum and denominator of `next` into `state`.
template <class Isa>
MergeStep merge_scalars(State& state, float maximum, float denominator) {
  if (empty({maximum, denominator, nullptr})) return {Merge::kSkip, {}};
  if (empty(state)) {
    state.maximum = maximum;
    state.denominator = denominator;
    return {Merge::kCopy, {}};
  }
  const float larger = maximum > state.maximum ? maximum : state.maximum;
  const Pair factor = exp2_pair<Isa>(state.maximum - larger, maximum - larger);
  state.maximum = larger;
  const float scaled = denominator * factor.b;
  state.denominator =
      _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(state.denominator), _mm_set_ss(factor.a), _mm_set_ss(scaled)));
  return {Merge::kFold, factor};
}

/// Merges one vector of channels.
template <class Isa>
void merge_channels(const MergeStep& step, float* state, typename Isa::Floats next) {
  if (step.how == Merge::kCopy) Isa::store(state, next);
  if (step.how != Merge::kFold) return;
  const typename Isa::Floats scaled = Isa::multiply(next, Isa::broadcast(step.factor.b));
  Isa::store(state, Isa::fma(Isa::load(state), Isa::broadcast(step.factor.a), scaled));
}

/// Appends `next` to `state`.
template <class Isa>
void merge(State& state, const State& next, std::int64_t dim) {
  const MergeStep step = merge_scalars<Isa>(state, next.maximum, next.denominator);
  for (std::int64_t d = 0; d < dim; d += Isa::kLanes) {
    merge_channels<Isa>(step, state.output + d, Isa::load(next.output + d));
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

/// A tile of the one token 0 of its page: its weight is the largest, and its denominator 1.
class SinglePage {
 public:
  SinglePage(const std::uint8_t* page, std::int64_t dim) : keys_(page), dim_(dim) {
    const std::uint8_t* values = page + kTokens * dim;
    const std::uint8_t* scales = values + kTokens * dim;
    key_scale_ = widen(scales);
    const float value_scale = widen(scales + 2 * kTokens);
    const bool any = value_scale >= exact::kSmallestWeight;
    const float unit = value_scale / exact::kWeightMax;
    for (std::int64_t d = 0; d < dim; ++d) {
      const auto value = static_cast<std::int8_t>(values[d * kTokens]);
      output_[d] = any ? static_cast<float>(65535 * value) * unit : 0.0F;
    }
  }

  const float* output() const { return output_; }

  float score(const std::int8_t* q, float scale) const {
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
    return static_cast<float>(_mm_cvtsi128_si32(sum)) * (scale * key_scale_);
  }

 private:
  static float widen(const std::uint8_t* bf16) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, bf16, 2);
    return bits_to_float(static_cast<std::uint32_t>(bits) << 16);
  }

  const std::uint8_t* keys_;
  std::int64_t dim_;
  float key_scale_;
  float output_[kMaxDim];
};

}  // namespace
}  // namespace fieldprint::backend::simd
