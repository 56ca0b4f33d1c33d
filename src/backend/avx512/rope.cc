#include "backend/avx512/rope.h"

#include <immintrin.h>

#include <cstring>

#include "backend/avx512/math.h"
#include "backend/simd/append_values.h"
#include "exact/format.h"

namespace fieldprint::backend::avx512 {
namespace {

constexpr std::int64_t kMaxDim = 256;

/// cos and sin of every rotation of one position. D/2 is a multiple of 8, so arrays have room for a last
/// vector that is half used.
struct Rotation {
  alignas(64) float cos[kMaxDim / 2 + 8];
  alignas(64) float sin[kMaxDim / 2 + 8];
};

/// Mask of the lanes below `left`.
__mmask16 lanes(std::int64_t left) { return left >= 16 ? 0xFFFF : 0x00FF; }

void rotation(const RopeTable& table, std::int64_t position, std::int64_t half, Rotation& out) {
  const std::int64_t high = position / exact::kRopeLow * half;
  const std::int64_t low = position % exact::kRopeLow * half;
  for (std::int64_t i = 0; i < half; i += 16) {
    const __mmask16 mask = lanes(half - i);
    const __m512 ch = _mm512_maskz_loadu_ps(mask, table.high_cos + high + i);
    const __m512 sh = _mm512_maskz_loadu_ps(mask, table.high_sin + high + i);
    const __m512 cl = _mm512_maskz_loadu_ps(mask, table.low_cos + low + i);
    const __m512 sl = _mm512_maskz_loadu_ps(mask, table.low_sin + low + i);
    _mm512_mask_storeu_ps(out.cos + i, mask, _mm512_fmsub_ps(ch, cl, _mm512_mul_ps(sh, sl)));
    _mm512_mask_storeu_ps(out.sin + i, mask, _mm512_fmadd_ps(sh, cl, _mm512_mul_ps(ch, sl)));
  }
}

/// The head after its norm (if it has one) and rotation; element i pairs with element i + D/2.
void rotate(const float* x, const float* norm, const RopeAppendArgs& args, const Rotation& turn, float* out) {
  const std::int64_t half = args.head_dim / 2;
  const float factor = norm != nullptr ? inverse_rms(x, args.head_dim, args.epsilon) : 0.0F;
  const auto element = [&](std::int64_t i, __mmask16 mask) {
    const __m512 value = _mm512_maskz_loadu_ps(mask, x + i);
    if (norm == nullptr) return value;
    return _mm512_mul_ps(_mm512_mul_ps(value, _mm512_set1_ps(factor)), _mm512_maskz_loadu_ps(mask, norm + i));
  };
  for (std::int64_t i = 0; i < half; i += 16) {
    const __mmask16 mask = lanes(half - i);
    const __m512 a = element(i, mask);
    const __m512 b = element(i + half, mask);
    const __m512 cos = _mm512_maskz_loadu_ps(mask, turn.cos + i);
    const __m512 sin = _mm512_maskz_loadu_ps(mask, turn.sin + i);
    _mm512_mask_storeu_ps(out + i, mask, _mm512_fmsub_ps(a, cos, _mm512_mul_ps(b, sin)));
    _mm512_mask_storeu_ps(out + half + i, mask, _mm512_fmadd_ps(b, cos, _mm512_mul_ps(a, sin)));
  }
}

float abs_max(const float* x, std::int64_t dim) {
  __m512i largest = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < dim; i += 16) largest = max_magnitude(largest, _mm512_loadu_ps(x + i));
  return reduce_magnitude(largest);
}

bool finite(const float* x, std::int64_t dim) { return abs_max(x, dim) <= exact::kMaxFloat; }

/// exact::clamp_to_level of 16 elements.
__m128i levels(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-exact::kA8Max), x);
  x = _mm512_min_ps(_mm512_set1_ps(exact::kA8Max), x);
  return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
}

void store_levels(std::int8_t* out, __m128i bytes) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), bytes);
}

void append_query(const RopeAppendArgs& args, std::int64_t t, std::int64_t h, const float* x,
                  const Rotation& turn) {
  const std::int64_t dim = args.head_dim;
  alignas(64) float head[kMaxDim];
  rotate(x, args.q_norm, args, turn, head);
  const float* factor = args.scales.q_factor + h / (args.heads / args.kv_heads) * dim;
  for (std::int64_t i = 0; i < dim; i += 16) {
    _mm512_store_ps(head + i, _mm512_mul_ps(_mm512_load_ps(head + i), _mm512_loadu_ps(factor + i)));
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
  const __m512 inverse = _mm512_set1_ps(0x1p22F / static_cast<float>(step));
  for (std::int64_t i = 0; i < dim; i += 16) {
    store_levels(q + i, levels(_mm512_mul_ps(_mm512_load_ps(head + i), inverse)));
  }
}

void append_key(const RopeAppendArgs& args, std::int64_t t, std::int64_t h, const float* key,
                const Rotation& turn) {
  const std::int64_t dim = args.head_dim;
  const std::int64_t channel = h * dim;
  const KvScales& scales = args.scales;
  alignas(64) float head[kMaxDim];
  rotate(key, args.k_norm, args, turn, head);
  if (!finite(head, dim)) args.non_finite[t] = 1;
  const bool in_sink = args.positions[t] == 0;
  const __m512 factor = _mm512_set1_ps(in_sink ? scales.sink[4 * h + kSinkKeyInverse] : 1.0F);
  std::int8_t* out = simd::page_of(args, t, h) + args.slots[t] * dim;
  for (std::int64_t i = 0; i < dim; i += 16) {
    const __m512 moved =
        _mm512_sub_ps(_mm512_load_ps(head + i), _mm512_loadu_ps(scales.k_offset + channel + i));
    const __m512 k = _mm512_mul_ps(moved, _mm512_loadu_ps(scales.k_inverse + channel + i));
    store_levels(out + i, levels(_mm512_mul_ps(k, factor)));
  }
}

void value_levels(const RopeAppendArgs& args, std::int64_t t, std::int64_t h, std::int8_t* out) {
  const std::int64_t dim = args.head_dim;
  const float* value =
      args.qkv + (t * (args.heads + 2 * args.kv_heads) + args.heads + args.kv_heads + h) * dim;
  if (!finite(value, dim)) args.non_finite[t] = 1;
  const bool in_sink = args.positions[t] == 0;
  const __m512 factor = _mm512_set1_ps(in_sink ? args.scales.sink[4 * h + kSinkValueInverse] : 1.0F);
  for (std::int64_t i = 0; i < dim; i += 16) {
    const __m512 v =
        _mm512_mul_ps(_mm512_loadu_ps(value + i), _mm512_loadu_ps(args.scales.v_inverse + h * dim + i));
    store_levels(out + i, levels(_mm512_mul_ps(v, factor)));
  }
}

struct StoreTokens {
  __mmask32 present;
  void operator()(std::int8_t* row, __m256i bytes) const { _mm256_mask_storeu_epi8(row, present, bytes); }
};

struct Appender {
  using Turn = Rotation;
  using Store = StoreTokens;
  static constexpr auto kQuery = append_query;
  static constexpr auto kKey = append_key;
  static constexpr auto kValueLevels = avx512::value_levels;

  static void begin(const RopeAppendArgs& args, std::int64_t t, Rotation& turn) {
    rotation(args.rope, args.positions[t], args.head_dim / 2, turn);
  }
};

}  // namespace

void rope_append(const RopeAppendArgs& args, std::int64_t begin, std::int64_t end) {
  simd::append_rows<Appender>(args, begin, end);
}

}  // namespace fieldprint::backend::avx512
