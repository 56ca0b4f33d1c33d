#include "backend/avx512/quantize.h"

#include <immintrin.h>

#include <cstdint>

#include "backend/avx512/math.h"
#include "exact/format.h"

namespace fieldprint::backend::avx512 {
namespace {

// Every row here has a multiple of 32 columns, so only probabilities needs masks.
using exact::kBlockCols;

/// The widest row: bounds::kMaxDim.
constexpr std::int64_t kMaxCols = 65536;

/// A row as it lies in memory.
struct PlainRow {
  const float* x;
  __m512 load(std::int64_t i) const { return _mm512_loadu_ps(x + i); }
};

/// A row under RMSNorm.
struct NormedRow {
  const float* x;
  const float* weight;
  __m512 factor;
  __m512 load(std::int64_t i) const {
    return _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), factor), _mm512_loadu_ps(weight + i));
  }
};

/// x / (1 + 2^-z): SiLU and GELU differ in z.
__m512 sigmoid_product(__m512 x, __m512 z) {
  const __m512 negated = _mm512_xor_ps(z, _mm512_set1_ps(-0.0F));
  return _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0F), exp2(negated)));
}

template <GateFunction kFunction>
struct GatedRow {
  const float* gate;
  const float* up;
  __m512 load(std::int64_t i) const {
    const __m512 x = _mm512_loadu_ps(gate + i);
    __m512 z;
    if constexpr (kFunction == GateFunction::kSilu) {
      z = _mm512_mul_ps(x, _mm512_set1_ps(exact::kLog2E));
    } else {
      z = _mm512_mul_ps(x, _mm512_fmadd_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(exact::kGeluCubic),
                                           _mm512_set1_ps(exact::kGeluLinear)));
    }
    return _mm512_mul_ps(sigmoid_product(x, z), _mm512_loadu_ps(up + i));
  }
};

void note_non_finite(const QuantRows& out, std::int64_t t, float scale) {
  if (!(scale < exact::kMaxFloat)) out.non_finite[t] = 1;
}

/// Σ of 16 lanes of 32-bit integers.
std::int32_t reduce_sum(__m512i v) {
  const __m256i by8 = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
  const __m128i by4 = _mm_add_epi32(_mm256_castsi256_si128(by8), _mm256_extracti128_si256(by8, 1));
  const __m128i by2 = _mm_add_epi32(by4, _mm_shuffle_epi32(by4, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(by2, _mm_shuffle_epi32(by2, 0xB1)));
}

void store_bytes(std::int8_t* out, __m512i v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(v));
}

template <class Row>
float row_amax(const Row& row, std::int64_t cols) {
  __m512i low = _mm512_setzero_si512();
  __m512i high = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < cols; i += 32) {
    low = max_magnitude(low, row.load(i));
    high = max_magnitude(high, row.load(i + 16));
  }
  return reduce_magnitude(_mm512_max_epu32(low, high));
}

template <class Row>
void quantize_a8(const Row& row, float amax, const QuantRows& out, std::int64_t t) {
  const auto [inverse, scale] = quant_scale(amax, exact::kA8Max);
  note_non_finite(out, t, scale);
  std::int8_t* q = out.q + t * out.cols;
  __m512i sum = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < out.cols; i += 16) {
    const __m512i v = quantise(row.load(i), inverse);
    store_bytes(q + i, v);
    sum = _mm512_add_epi32(sum, v);
  }
  out.scale[t] = scale;
  out.row_sum[t] = reduce_sum(sum);
}

template <class Row>
void quantize_a16(const Row& row, float amax, const QuantRows& out, std::int64_t t) {
  const auto [inverse, scale] = quant_scale(amax, exact::kA16Max);
  note_non_finite(out, t, scale);
  std::int8_t* high = out.q + 2 * t * out.cols;
  std::int8_t* low = high + out.cols;
  __m512i high_sum = _mm512_setzero_si512();
  __m512i low_sum = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < out.cols; i += 16) {
    const __m512i v = quantise(row.load(i), inverse);
    // Balanced digits: v = 256·h + l with l in -128..127.
    const __m512i h = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
    const __m512i l = _mm512_sub_epi32(v, _mm512_slli_epi32(h, 8));
    store_bytes(high + i, h);
    store_bytes(low + i, l);
    high_sum = _mm512_add_epi32(high_sum, h);
    low_sum = _mm512_add_epi32(low_sum, l);
  }
  out.scale[t] = scale;
  out.row_sum[2 * t] = reduce_sum(high_sum);
  out.row_sum[2 * t + 1] = reduce_sum(low_sum);
}

template <class Row>
void quantize_a8g32(const Row& row, const QuantRows& out, std::int64_t t) {
  const std::int64_t blocks = out.cols / kBlockCols;
  std::int8_t* q = out.q + t * out.cols;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const __m512 x0 = row.load(b * kBlockCols);
    const __m512 x1 = row.load(b * kBlockCols + 16);
    const float amax = reduce_magnitude(max_magnitude(max_magnitude(_mm512_setzero_si512(), x0), x1));
    const auto [inverse, scale] = quant_scale(amax, exact::kA8Max);
    note_non_finite(out, t, scale);
    const __m512i v0 = quantise(x0, inverse);
    const __m512i v1 = quantise(x1, inverse);
    store_bytes(q + b * kBlockCols, v0);
    store_bytes(q + b * kBlockCols + 16, v1);
    out.scale[t * blocks + b] = scale;
    out.block_sum[t * blocks + b] = scale * static_cast<float>(reduce_sum(_mm512_add_epi32(v0, v1)));
  }
}

template <class Row>
void quantize_row(const Row& row, const QuantRows& out, std::int64_t t) {
  switch (out.format) {
    case ActivationFormat::kA8:
      return quantize_a8(row, row_amax(row, out.cols), out, t);
    case ActivationFormat::kA16:
      return quantize_a16(row, row_amax(row, out.cols), out, t);
    case ActivationFormat::kA8G32:
      return quantize_a8g32(row, out, t);
  }
}

template <GateFunction kFunction>
void gated_rows(const GatedQuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t cols = args.out.cols;
  // A scale per row needs the row twice; the exponentials and divisions are worth keeping.
  alignas(64) float gated[kMaxCols];
  for (std::int64_t t = begin; t < end; ++t) {
    const float* gate = args.gate_up + 2 * t * cols;
    const GatedRow<kFunction> row{gate, gate + cols};
    if (args.out.format == ActivationFormat::kA8G32) {
      quantize_a8g32(row, args.out, t);
      continue;
    }
    for (std::int64_t i = 0; i < cols; i += 16) _mm512_store_ps(gated + i, row.load(i));
    quantize_row(PlainRow{gated}, args.out, t);
  }
}

/// The largest of `size` logits, as a scan from the first one finds it: NaN only if that is the first.
float largest_logit(const float* logits, std::int64_t size) {
  __m512 largest = _mm512_set1_ps(logits[0]);
  for (std::int64_t i = 0; i < size; i += 16) {
    const std::int64_t left = size - i;
    const auto mask = static_cast<__mmask16>(left >= 16 ? 0xFFFF : (1 << left) - 1);
    const __m512 x = _mm512_maskz_loadu_ps(mask, logits + i);
    // max returns its second operand where one is NaN: what was found so far.
    largest = _mm512_mask_max_ps(largest, mask, x, largest);
  }
  const __m256 by8 = _mm256_max_ps(_mm512_castps512_ps256(largest), _mm512_extractf32x8_ps(largest, 1));
  const __m128 by4 = _mm_max_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_max_ss(by2, _mm_movehdup_ps(by2)));
}

}  // namespace

void norm_quantize(const NormQuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t cols = args.out.cols;
  for (std::int64_t t = begin; t < end; ++t) {
    const float* x = args.x + (args.rows != nullptr ? args.rows[t] : t) * cols;
    const __m512 factor = _mm512_set1_ps(inverse_rms(x, cols, args.epsilon));
    quantize_row(NormedRow{x, args.weight, factor}, args.out, t);
  }
}

void norm_add(const NormAddArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t cols = args.cols;
  for (std::int64_t t = begin; t < end; ++t) {
    const float* x = args.x + t * cols;
    float* residual = args.residual + t * cols;
    const NormedRow row{x, args.weight, _mm512_set1_ps(inverse_rms(x, cols, args.epsilon))};
    for (std::int64_t i = 0; i < cols; i += 16) {
      _mm512_storeu_ps(residual + i, _mm512_add_ps(_mm512_loadu_ps(residual + i), row.load(i)));
    }
  }
}

void quantize(const QuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t t = begin; t < end; ++t) {
    quantize_row(PlainRow{args.x + t * args.out.cols}, args.out, t);
  }
}

void gated_quantize(const GatedQuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  if (args.function == GateFunction::kSilu) return gated_rows<GateFunction::kSilu>(args, begin, end);
  return gated_rows<GateFunction::kGelu>(args, begin, end);
}

void probabilities(const ProbabilitiesArgs& args, std::int64_t begin, std::int64_t end) {
  const __m512 one = _mm512_set1_ps(exact::kProbabilityOne);
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t vocab = args.vocab;
    const float* logits = args.logits + row * vocab;
    std::int32_t* p = args.p + row * vocab;
    const __m512 maximum = _mm512_set1_ps(largest_logit(logits, vocab));
    const __m512 scale = _mm512_set1_ps(args.scale[row]);
    for (std::int64_t i = 0; i < vocab; i += 16) {
      const std::int64_t left = vocab - i;
      const auto mask = static_cast<__mmask16>(left >= 16 ? 0xFFFF : (1 << left) - 1);
      const __m512 x = _mm512_maskz_loadu_ps(mask, logits + i);
      const __m512 below = _mm512_mul_ps(_mm512_sub_ps(x, maximum), scale);
      const __mmask16 number = _mm512_cmp_ps_mask(below, below, _CMP_ORD_Q);
      const __m512 scaled = _mm512_mul_ps(exp2(below), one);
      _mm512_mask_storeu_epi32(p + i, mask, _mm512_maskz_cvtps_epi32(number, scaled));
    }
  }
}

}  // namespace fieldprint::backend::avx512
