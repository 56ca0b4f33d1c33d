#include "backend/avx2/rope.h"

#include <immintrin.h>

#include <cstring>

#include "backend/avx2/math.h"
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

std::uint16_t to_bf16(float x) {
  const std::uint32_t bits = float_to_bits(x);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

/// round(x·inverse) of 16 elements as bytes, held within ±127.
__m128i quantise_bytes(const float* x, float inverse) {
  const __m256i words =
      _mm256_packs_epi32(quantise(_mm256_loadu_ps(x), inverse), quantise(_mm256_loadu_ps(x + 8), inverse));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xD8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  return _mm_max_epi8(bytes, _mm_set1_epi8(-127));
}

/// Quantises a key or value to q [D] and returns its scale, which is rounded before it divides.
std::uint16_t quantise_rounded(const float* x, std::int64_t dim, std::int8_t* q, std::int32_t& non_finite) {
  const float scale = quant_scale(abs_max(x, dim), exact::kA8Max).scale;
  if (!(scale < exact::kMaxFloat)) non_finite = 1;
  const std::uint16_t stored = to_bf16(scale);
  const float rounded = bits_to_float(static_cast<std::uint32_t>(stored) << 16);
  const bool usable = rounded > 0.0F && rounded < exact::kMaxFloat;
  const float inverse = usable ? 1.0F / rounded : 0.0F;
  for (std::int64_t i = 0; i < dim; i += 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), quantise_bytes(x + i, inverse));
  }
  return stored;
}

void append_query(const RopeAppendArgs& args, std::int64_t t, std::int64_t h, const float* x,
                  const Rotation& turn) {
  const std::int64_t dim = args.head_dim;
  alignas(32) float head[kMaxDim];
  rotate(x, args.q_norm, args, turn, head);
  const QuantScale scale = quant_scale(abs_max(head, dim), exact::kA8Max);
  if (!(scale.scale < exact::kMaxFloat)) args.non_finite[t] = 1;
  std::int8_t* q = args.q + (t * args.heads + h) * dim;
  for (std::int64_t i = 0; i < dim; i += 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), quantise_bytes(head + i, scale.inverse));
  }
  args.q_scale[t * args.heads + h] = scale.scale * args.score_scale;
}

void append_key_value(const RopeAppendArgs& args, std::int64_t t, std::int64_t h, const float* key,
                      const float* value, const Rotation& turn) {
  const std::int64_t dim = args.head_dim;
  const std::int64_t slot = args.slots[t];
  std::uint8_t* page =
      args.kv.pool + args.blocks[t] * args.kv.block_stride + args.kv.layer_offset + h * page_bytes(dim);
  auto* keys = reinterpret_cast<std::int8_t*>(page);
  std::int8_t* values = keys + exact::kPageTokens * dim;
  std::uint8_t* scales = page + 2 * exact::kPageTokens * dim;

  alignas(32) float head[kMaxDim];
  rotate(key, args.k_norm, args, turn, head);
  for (std::int64_t i = 0; i < dim; i += 8) {
    const __m256 offset = _mm256_loadu_ps(args.k_offset + h * dim + i);
    _mm256_store_ps(head + i, _mm256_sub_ps(_mm256_load_ps(head + i), offset));
  }
  const std::uint16_t key_scale = quantise_rounded(head, dim, keys + slot * dim, args.non_finite[t]);

  std::int8_t quantised[kMaxDim];
  const std::uint16_t value_scale = quantise_rounded(value, dim, quantised, args.non_finite[t]);
  for (std::int64_t i = 0; i < dim; ++i) values[i * exact::kPageTokens + slot] = quantised[i];
  std::memcpy(scales + 2 * slot, &key_scale, 2);
  std::memcpy(scales + 2 * (exact::kPageTokens + slot), &value_scale, 2);
}

}  // namespace

void rope_append(const RopeAppendArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t dim = args.head_dim;
  Rotation turn;
  for (std::int64_t t = begin; t < end; ++t) {
    rotation(args.rope, args.positions[t], dim / 2, turn);
    const float* row = args.qkv + t * (args.heads + 2 * args.kv_heads) * dim;
    for (std::int64_t h = 0; h < args.heads; ++h) append_query(args, t, h, row + h * dim, turn);
    const float* keys = row + args.heads * dim;
    const float* values = keys + args.kv_heads * dim;
    for (std::int64_t h = 0; h < args.kv_heads; ++h) {
      append_key_value(args, t, h, keys + h * dim, values + h * dim, turn);
    }
  }
}

}  // namespace fieldprint::backend::avx2
