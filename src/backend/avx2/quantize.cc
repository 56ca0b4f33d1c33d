#include "backend/avx2/quantize.h"

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "backend/avx2/math.h"
#include "exact/format.h"

namespace fieldprint::backend::avx2 {
namespace {

// Every row here has a multiple of 32 columns, so only probabilities has a remainder.
using exact::kBlockCols;

/// The widest row: bounds::kMaxDim.
constexpr std::int64_t kMaxCols = 65536;

/// A row as it lies in memory.
struct PlainRow {
  const float* x;
  __m256 load(std::int64_t i) const { return _mm256_loadu_ps(x + i); }
};

/// A row under RMSNorm.
struct NormedRow {
  const float* x;
  const float* weight;
  __m256 factor;
  __m256 load(std::int64_t i) const {
    return _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), factor), _mm256_loadu_ps(weight + i));
  }
};

/// x / (1 + 2^-z): SiLU and GELU differ in z.
__m256 sigmoid_product(__m256 x, __m256 z) {
  const __m256 negated = _mm256_xor_ps(z, _mm256_set1_ps(-0.0F));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0F), exp2(negated)));
}

template <GateFunction kFunction>
struct GatedRow {
  const float* gate;
  const float* up;
  __m256 load(std::int64_t i) const {
    const __m256 x = _mm256_loadu_ps(gate + i);
    __m256 z;
    if constexpr (kFunction == GateFunction::kSilu) {
      z = _mm256_mul_ps(x, _mm256_set1_ps(exact::kLog2E));
    } else {
      z = _mm256_mul_ps(x, _mm256_fmadd_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(exact::kGeluCubic),
                                           _mm256_set1_ps(exact::kGeluLinear)));
    }
    return _mm256_mul_ps(sigmoid_product(x, z), _mm256_loadu_ps(up + i));
  }
};

void note_non_finite(const QuantRows& out, std::int64_t t, float scale) {
  if (!(scale < exact::kMaxFloat)) out.non_finite[t] = 1;
}

/// Σ of 8 lanes of 32-bit integers.
std::int32_t reduce_sum(__m256i v) {
  const __m128i by4 = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  const __m128i by2 = _mm_add_epi32(by4, _mm_shuffle_epi32(by4, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(by2, _mm_shuffle_epi32(by2, 0xB1)));
}

/// Stores 32 integers in -128..127 as bytes, and returns the sum of the four vectors.
__m256i store_bytes(std::int8_t* out, __m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(packed, order));
  return _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
}

template <class Row>
float row_amax(const Row& row, std::int64_t cols) {
  __m256i low = _mm256_setzero_si256();
  __m256i high = _mm256_setzero_si256();
  for (std::int64_t i = 0; i < cols; i += 16) {
    low = max_magnitude(low, row.load(i));
    high = max_magnitude(high, row.load(i + 8));
  }
  return reduce_magnitude(_mm256_max_epu32(low, high));
}

template <class Row>
void quantize_a8(const Row& row, float amax, const QuantRows& out, std::int64_t t) {
  const auto [inverse, scale] = quant_scale(amax, exact::kA8Max);
  note_non_finite(out, t, scale);
  std::int8_t* q = out.q + t * out.cols;
  __m256i sum = _mm256_setzero_si256();
  for (std::int64_t i = 0; i < out.cols; i += 32) {
    __m256i v[4];
    for (int j = 0; j < 4; ++j) v[j] = quantise(row.load(i + 8 * j), inverse);
    sum = _mm256_add_epi32(sum, store_bytes(q + i, v[0], v[1], v[2], v[3]));
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
  __m256i high_sum = _mm256_setzero_si256();
  __m256i low_sum = _mm256_setzero_si256();
  for (std::int64_t i = 0; i < out.cols; i += 32) {
    __m256i h[4];
    __m256i l[4];
    for (int j = 0; j < 4; ++j) {
      // Balanced digits: v = 256·h + l with l in -128..127.
      const __m256i v = quantise(row.load(i + 8 * j), inverse);
      h[j] = _mm256_srai_epi32(_mm256_add_epi32(v, _mm256_set1_epi32(128)), 8);
      l[j] = _mm256_sub_epi32(v, _mm256_slli_epi32(h[j], 8));
    }
    high_sum = _mm256_add_epi32(high_sum, store_bytes(high + i, h[0], h[1], h[2], h[3]));
    low_sum = _mm256_add_epi32(low_sum, store_bytes(low + i, l[0], l[1], l[2], l[3]));
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
    __m256 x[4];
    __m256i largest = _mm256_setzero_si256();
    for (int j = 0; j < 4; ++j) {
      x[j] = row.load(b * kBlockCols + 8 * j);
      largest = max_magnitude(largest, x[j]);
    }
    const auto [inverse, scale] = quant_scale(reduce_magnitude(largest), exact::kA8Max);
    note_non_finite(out, t, scale);
    const __m256i sum = store_bytes(q + b * kBlockCols, quantise(x[0], inverse), quantise(x[1], inverse),
                                    quantise(x[2], inverse), quantise(x[3], inverse));
    out.scale[t * blocks + b] = scale;
    out.block_sum[t * blocks + b] = scale * static_cast<float>(reduce_sum(sum));
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
  alignas(32) float gated[kMaxCols];
  for (std::int64_t t = begin; t < end; ++t) {
    const float* gate = args.gate_up + 2 * t * cols;
    const GatedRow<kFunction> row{gate, gate + cols};
    if (args.out.format == ActivationFormat::kA8G32) {
      quantize_a8g32(row, args.out, t);
      continue;
    }
    for (std::int64_t i = 0; i < cols; i += 8) _mm256_store_ps(gated + i, row.load(i));
    quantize_row(PlainRow{gated}, args.out, t);
  }
}

/// Eight logits from i on; past the end, the first one again.
__m256 load_logits(const float* logits, std::int64_t i, std::int64_t size) {
  if (i + 8 <= size) return _mm256_loadu_ps(logits + i);
  float padded[8];
  for (std::int64_t j = 0; j < 8; ++j) padded[j] = logits[i + j < size ? i + j : 0];
  return _mm256_loadu_ps(padded);
}

/// The largest of `size` logits, as a scan from the first one finds it: NaN only if that is the first.
float largest_logit(const float* logits, std::int64_t size) {
  __m256 largest = _mm256_set1_ps(logits[0]);
  // max returns its second operand where one is NaN: what was found so far.
  for (std::int64_t i = 0; i < size; i += 8) largest = _mm256_max_ps(load_logits(logits, i, size), largest);
  const __m128 by4 = _mm_max_ps(_mm256_castps256_ps128(largest), _mm256_extractf128_ps(largest, 1));
  const __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_max_ss(by2, _mm_movehdup_ps(by2)));
}

}  // namespace

void norm_quantize(const NormQuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t cols = args.out.cols;
  for (std::int64_t t = begin; t < end; ++t) {
    const float* x = args.x + (args.rows != nullptr ? args.rows[t] : t) * cols;
    const __m256 factor = _mm256_set1_ps(inverse_rms(x, cols, args.epsilon));
    quantize_row(NormedRow{x, args.weight, factor}, args.out, t);
  }
}

void norm_add(const NormAddArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t cols = args.cols;
  for (std::int64_t t = begin; t < end; ++t) {
    const float* x = args.x + t * cols;
    float* residual = args.residual + t * cols;
    const NormedRow row{x, args.weight, _mm256_set1_ps(inverse_rms(x, cols, args.epsilon))};
    for (std::int64_t i = 0; i < cols; i += 8) {
      _mm256_storeu_ps(residual + i, _mm256_add_ps(_mm256_loadu_ps(residual + i), row.load(i)));
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
  const __m256 one = _mm256_set1_ps(exact::kProbabilityOne);
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t vocab = args.vocab;
    const float* logits = args.logits + row * vocab;
    std::int32_t* p = args.p + row * vocab;
    const __m256 maximum = _mm256_set1_ps(largest_logit(logits, vocab));
    const __m256 scale = _mm256_set1_ps(args.scale[row]);
    for (std::int64_t i = 0; i < vocab; i += 8) {
      const __m256 x = load_logits(logits, i, vocab);
      const __m256 below = _mm256_mul_ps(_mm256_sub_ps(x, maximum), scale);
      const __m256i number = _mm256_castps_si256(_mm256_cmp_ps(below, below, _CMP_ORD_Q));
      const __m256 scaled = _mm256_mul_ps(exp2(below), one);
      const __m256i integer = _mm256_and_si256(_mm256_cvtps_epi32(scaled), number);
      if (i + 8 <= vocab) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + i), integer);
      } else {
        std::memcpy(p + i, &integer, static_cast<std::size_t>(vocab - i) * sizeof(std::int32_t));
      }
    }
  }
}

}  // namespace fieldprint::backend::avx2
