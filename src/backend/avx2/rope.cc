#include "backend/avx2/rope.h"

#include <immintrin.h>

#include <cstring>

#include "backend/avx2/math.h"
#include "backend/simd/append_values.h"
#include "exact/format.h"

namespace fieldprint::backend::avx2 {
namespace {

constexpr std::int64_t kMaxDim = 256;

/// cos and sin of every rotation of one position.
struct Rotation {
  alignas(32) float cos[kMaxDim / 2];
  alignas(32) float sin[kMaxDim / 2];
};

void rotation(const RopeTable& table, std::int64_t position, std::int64_t half, Rotation& out) {
  const std::int64_t high = position / exact::kRopeLow * half;
  const std::int64_t low = position % exact::kRopeLow * half;
  for (std::int64_t i = 0; i < half; i += 8) {
    const __m256 ch = _mm256_loadu_ps(table.high_cos + high + i);
    const __m256 sh = _mm256_loadu_ps(table.high_sin + high + i);
    const __m256 cl = _mm256_loadu_ps(table.low_cos + low + i);
    const __m256 sl = _mm256_loadu_ps(table.low_sin + low + i);
    _mm256_store_ps(out.cos + i, _mm256_fmsub_ps(ch, cl, _mm256_mul_ps(sh, sl)));
    _mm256_store_ps(out.sin + i, _mm256_fmadd_ps(sh, cl, _mm256_mul_ps(ch, sl)));
  }
}

/// The head after its norm (if it has one) and rotation; element i pairs with element i + D/2.
void rotate(const float* x, const float* norm, const RopeAppendArgs& args, const Rotation& turn, float* out) {
  const std::int64_t half = args.head_dim / 2;
  const float factor = norm != nullptr ? inverse_rms(x, args.head_dim, args.epsilon) : 0.0F;
  const auto element = [&](std::int64_t i) {
    const __m256 value = _mm256_loadu_ps(x + i);
    if (norm == nullptr) return value;
    return _mm256_mul_ps(_mm256_mul_ps(value, _mm256_set1_ps(factor)), _mm256_loadu_ps(norm + i));
  };
  for (std::int64_t i = 0; i < half; i += 8) {
    const __m256 a = element(i);
    const __m256 b = element(i + half);
    const __m256 cos = _mm256_load_ps(turn.cos + i);
    const __m256 sin = _mm256_load_ps(turn.sin + i);
    _mm256_store_ps(out + i, _mm256_fmsub_ps(a, cos, _mm256_mul_ps(b, sin)));
    _mm256_store_ps(out + half + i, _mm256_fmadd_ps(b, cos, _mm256_mul_ps(a, sin)));
  }
}

float abs_max(const float* x, std::int64_t dim) {
  __m256i largest = _mm256_setzero_si256();
  for (std::int64_t i = 0; i < dim; i += 8) largest = max_magnitude(largest, _mm256_loadu_ps(x + i));
  return reduce_magnitude(largest);
}

bool finite(const float* x, std::int64_t dim) { return abs_max(x, dim) <= exact::kMaxFloat; }

/// exact::clamp_to_level of 8 elements, as integers.
__m256i clamp_to_level(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-exact::kA8Max), x);
  x = _mm256_min_ps(_mm256_set1_ps(exact::kA8Max), x);
  return _mm256_cvtps_epi32(x);
}

/// The same of 16, as bytes.
__m128i levels(__m256 low, __m256 high) {
  const __m256i words = _mm256_packs_epi32(clamp_to_level(low), clamp_to_level(high));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xD8);
  return _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
}

void store_levels(std::int8_t* out, __m128i bytes) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
}

void append_query(const RopeAppendArgs& args, std::int64_t t, std::int64_t h, const float* x,
                  const Rotation& turn) {
  const std::int64_t dim = args.head_dim;
  alignas(32) float head[kMaxDim];
  rotate(x, args.q_norm, args, turn, head);
  const float* factor = args.scales.q_factor + h / (args.heads / args.kv_heads) * dim;
  for (std::int64_t i = 0; i < dim; i += 8) {
    _mm256_store_ps(head + i, _mm256_mul_ps(_mm256_load_ps(head + i), _mm256_loadu_ps(factor + i)));
  }
  std::int8_t* q = args.q + (t * args.heads + h) * dim;
  std::int32_t& step = args.q_step[t * args.heads + h];
  const float amax = abs_max(head, dim);
  if (!(amax <= exact::kMaxFloat)) {
    args.non_finite[t] = 1;
    step = exact::kSmallestStep;
    std::memset(q, 0, static_cast<std::size_t>(dim));
    return;
  }
  step = query_step(amax);
  const __m256 inverse = _mm256_set1_ps(0x1p22F / static_cast<float>(step));
  for (std::int64_t i = 0; i < dim; i += 16) {
    store_levels(q + i, levels(_mm256_mul_ps(_mm256_load_ps(head + i), inverse),
                               _mm256_mul_ps(_mm256_load_ps(head + i + 8), inverse)));
  }
}

void append_key(const RopeAppendArgs& args, std::int64_t t, std::int64_t h, const float* key,
                const Rotation& turn) {
  const std::int64_t dim = args.head_dim;
  const std::int64_t channel = h * dim;
  const KvScales& scales = args.scales;
  alignas(32) float head[kMaxDim];
  rotate(key, args.k_norm, args, turn, head);
  if (!finite(head, dim)) args.non_finite[t] = 1;
  const bool in_sink = args.positions[t] == 0;
  const __m256 factor = _mm256_set1_ps(in_sink ? scales.sink[4 * h + kSinkKeyInverse] : 1.0F);
  const auto k_at = [&](std::int64_t i) {
    const __m256 moved =
        _mm256_sub_ps(_mm256_load_ps(head + i), _mm256_loadu_ps(scales.k_offset + channel + i));
    return _mm256_mul_ps(_mm256_mul_ps(moved, _mm256_loadu_ps(scales.k_inverse + channel + i)), factor);
  };
  std::int8_t* out = simd::page_of(args, t, h) + args.slots[t] * dim;
  for (std::int64_t i = 0; i < dim; i += 16) store_levels(out + i, levels(k_at(i), k_at(i + 8)));
}

void value_levels(const RopeAppendArgs& args, std::int64_t t, std::int64_t h, std::int8_t* out) {
  const std::int64_t dim = args.head_dim;
  const float* value =
      args.qkv + (t * (args.heads + 2 * args.kv_heads) + args.heads + args.kv_heads + h) * dim;
  if (!finite(value, dim)) args.non_finite[t] = 1;
  const bool in_sink = args.positions[t] == 0;
  const __m256 factor = _mm256_set1_ps(in_sink ? args.scales.sink[4 * h + kSinkValueInverse] : 1.0F);
  const auto v_at = [&](std::int64_t i) {
    const __m256 inverse = _mm256_loadu_ps(args.scales.v_inverse + h * dim + i);
    return _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(value + i), inverse), factor);
  };
  for (std::int64_t i = 0; i < dim; i += 16) store_levels(out + i, levels(v_at(i), v_at(i + 8)));
}

/// There is no store of chosen bytes that leaves the others alone.
struct StoreTokens {
  std::uint32_t present;
  void operator()(std::int8_t* row, __m256i bytes) const {
    if (present == 0xFFFFFFFF) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(row), bytes);
      return;
    }
    alignas(32) std::int8_t all[simd::kHalfPage];
    _mm256_store_si256(reinterpret_cast<__m256i*>(all), bytes);
    for (std::uint32_t left = present; left != 0; left &= left - 1) {
      const int place = __builtin_ctz(left);
      row[place] = all[place];
    }
  }
};

struct Appender {
  using Turn = Rotation;
  using Store = StoreTokens;
  static constexpr auto kQuery = append_query;
  static constexpr auto kKey = append_key;
  static constexpr auto kValueLevels = avx2::value_levels;

  static void begin(const RopeAppendArgs& args, std::int64_t t, Rotation& turn) {
    rotation(args.rope, args.positions[t], args.head_dim / 2, turn);
  }
};

}  // namespace

void rope_append(const RopeAppendArgs& args, std::int64_t begin, std::int64_t end) {
  simd::append_rows<Appender>(args, begin, end);
}

}  // namespace fieldprint::backend::avx2
