#include "backend/scalar/quantize.h"

#include <cmath>
#include <span>
#include <vector>

#include "exact/arith.h"

namespace fieldprint::backend::scalar {
namespace {

using Row = std::span<const float>;

void note_non_finite(const QuantRows& out, std::int64_t t, float scale) {
  if (!(scale < exact::kMaxFloat)) out.non_finite[t] = 1;
}

void quantize_a8(Row x, const QuantRows& out, std::int64_t t) {
  const auto [inverse, scale] = exact::quant_scale(exact::abs_max(x), exact::kA8Max);
  note_non_finite(out, t, scale);
  std::int32_t sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::int32_t q = exact::quantise(x[i], inverse);
    out.q[t * out.cols + static_cast<std::int64_t>(i)] = static_cast<std::int8_t>(q);
    sum += q;
  }
  out.scale[t] = scale;
  out.row_sum[t] = sum;
}

void quantize_a16(Row x, const QuantRows& out, std::int64_t t) {
  const auto [inverse, scale] = exact::quant_scale(exact::abs_max(x), exact::kA16Max);
  note_non_finite(out, t, scale);
  std::int8_t* high = out.q + 2 * t * out.cols;
  std::int8_t* low = high + out.cols;
  std::int32_t high_sum = 0;
  std::int32_t low_sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::int32_t q = exact::quantise(x[i], inverse);
    // Balanced digits: q = 256·h + l with l in -128..127.
    const std::int32_t h = (q + 128) >> 8;
    const std::int32_t l = q - 256 * h;
    high[i] = static_cast<std::int8_t>(h);
    low[i] = static_cast<std::int8_t>(l);
    high_sum += h;
    low_sum += l;
  }
  out.scale[t] = scale;
  out.row_sum[2 * t] = high_sum;
  out.row_sum[2 * t + 1] = low_sum;
}

void quantize_a8g32(Row x, const QuantRows& out, std::int64_t t) {
  const std::int64_t blocks = out.cols / exact::kBlockCols;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const Row block = x.subspan(static_cast<std::size_t>(b * exact::kBlockCols), exact::kBlockCols);
    const auto [inverse, scale] = exact::quant_scale(exact::abs_max(block), exact::kA8Max);
    note_non_finite(out, t, scale);
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < block.size(); ++i) {
      const std::int32_t q = exact::quantise(block[i], inverse);
      out.q[t * out.cols + b * exact::kBlockCols + static_cast<std::int64_t>(i)] =
          static_cast<std::int8_t>(q);
      sum += q;
    }
    out.scale[t * blocks + b] = scale;
    out.block_sum[t * blocks + b] = scale * static_cast<float>(sum);
  }
}

void quantize_row(Row x, const QuantRows& out, std::int64_t t) {
  switch (out.format) {
    case ActivationFormat::kA8:
      return quantize_a8(x, out, t);
    case ActivationFormat::kA16:
      return quantize_a16(x, out, t);
    case ActivationFormat::kA8G32:
      return quantize_a8g32(x, out, t);
  }
}

}  // namespace

void norm_quantize(const NormQuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const std::size_t cols = static_cast<std::size_t>(args.out.cols);
  std::vector<float> normed(cols);
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t row = args.rows != nullptr ? args.rows[t] : t;
    const Row x(args.x + row * args.out.cols, cols);
    const float factor = exact::inverse_rms(x, args.epsilon);
    for (std::size_t i = 0; i < cols; ++i) normed[i] = (x[i] * factor) * args.weight[i];
    quantize_row(normed, args.out, t);
  }
}

void norm_add(const NormAddArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t t = begin; t < end; ++t) {
    const Row x(args.x + t * args.cols, static_cast<std::size_t>(args.cols));
    const float factor = exact::inverse_rms(x, args.epsilon);
    float* residual = args.residual + t * args.cols;
    for (std::size_t i = 0; i < x.size(); ++i) residual[i] += (x[i] * factor) * args.weight[i];
  }
}

void quantize(const QuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t t = begin; t < end; ++t) {
    quantize_row(Row(args.x + t * args.out.cols, static_cast<std::size_t>(args.out.cols)), args.out, t);
  }
}

void gated_quantize(const GatedQuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t cols = args.out.cols;
  std::vector<float> gated(static_cast<std::size_t>(cols));
  for (std::int64_t t = begin; t < end; ++t) {
    const float* gate = args.gate_up + 2 * t * cols;
    const float* up = gate + cols;
    for (std::int64_t i = 0; i < cols; ++i) {
      const float f = args.function == GateFunction::kSilu ? exact::silu(gate[i]) : exact::gelu(gate[i]);
      gated[static_cast<std::size_t>(i)] = f * up[i];
    }
    quantize_row(gated, args.out, t);
  }
}

void probabilities(const ProbabilitiesArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const float* logits = args.logits + row * args.vocab;
    float maximum = logits[0];
    for (std::int64_t i = 1; i < args.vocab; ++i) maximum = logits[i] > maximum ? logits[i] : maximum;
    for (std::int64_t i = 0; i < args.vocab; ++i) {
      const float x = (logits[i] - maximum) * args.scale[row];
      // Asked of the argument: the exponent arithmetic of exp2 turns some NaN into numbers.
      const float p = std::isnan(x) ? 0.0F : exact::exp2(x);
      args.p[row * args.vocab + i] = static_cast<std::int32_t>(std::lrintf(p * exact::kProbabilityOne));
    }
  }
}

}  // namespace fieldprint::backend::scalar
