#include <array>
#include <vector>

#include "exact/arith.h"
#include "sampler/philox.h"
#include "vectors/golden.h"
#include "vectors/source.h"
#include "weights/rope_table.h"

/// The functions of exact/arith.h, the random numbers and the rotary tables.
namespace fieldprint::vectors {
namespace {

/// −130…130 in steps of 1/64: beyond the clamp on both sides.
std::vector<float> sweep() {
  std::vector<float> x;
  for (std::int32_t i = -130 * 64; i <= 130 * 64; ++i) x.push_back(static_cast<float>(i) / 64.0F);
  return x;
}

template <class Function>
std::vector<float> map(const std::vector<float>& x, Function function) {
  std::vector<float> y;
  for (const float value : x) y.push_back(function(value));
  return y;
}

void record_functions(Recorder& out) {
  out.inputs("x = i/64 for i = -8320..8320");
  out.add("exp2/sweep", map(sweep(), exact::exp2));
  out.add("silu/sweep", map(sweep(), exact::silu));
  out.add("gelu/sweep", map(sweep(), exact::gelu));
  Source source(1);
  out.inputs("seed 1, 10000 values in (-120, 120)");
  out.add("exp2/random", map(floats(10000, 120.0F, source), exact::exp2));

  std::vector<double> logarithms;
  for (std::uint64_t x = 1; x <= 1000; ++x) logarithms.push_back(exact::log2_of(x));
  Source integers(2);
  for (int i = 0; i < 1000; ++i) logarithms.push_back(exact::log2_of((integers.next() >> (i % 63)) | 1U));
  out.inputs("1..1000, then seed 2, 1000 integers (n_i >> (i % 63)) | 1");
  out.add("log2_of", logarithms);
}

void record_conversions(Recorder& out) {
  std::vector<float> halves;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    halves.push_back(exact::from_f16(static_cast<std::uint16_t>(bits)));
  }
  out.inputs("all 16-bit patterns");
  out.add("from_f16", halves);

  Source source(3);
  std::vector<float> rounded;
  for (int i = 0; i < 4096; ++i) {
    // Floats between 2^-14 and 2^15, of both signs.
    const auto bits = static_cast<std::uint32_t>(0x38800000U + source.below(29U << 23));
    const std::uint32_t sign = (i / 2) % 2 == 0 ? 0U : 0x80000000U;
    // Every other one is a tie between two neighbours.
    const std::uint32_t chosen = i % 2 == 0 ? bits : (bits & 0xFFFFE000U) | 0x1000U;
    rounded.push_back(exact::round_to_f16(exact::bits_to_float(sign | chosen)));
  }
  out.inputs("seed 3, 4096 floats of 2^-14 .. 2^15, every other one a tie, every other two negative");
  out.add("round_to_f16", rounded);

  std::vector<float> scales;
  for (const float levels : {exact::kA8Max, exact::kA16Max}) {
    for (const float amax : {0.0F, 0x1p-149F, 0x1.fffffep-101F, 0x1p-100F, 1.0F, 127.0F, exact::kMaxFloat}) {
      const exact::QuantScale made = exact::quant_scale(amax, levels);
      scales.push_back(made.inverse);
      scales.push_back(made.scale);
    }
  }
  out.inputs("levels 127 and 32512; amax 0, 2^-149, below 2^-100, 2^-100, 1, 127, largest float");
  out.add("quant_scale", scales);
}

void record_attention_steps(Recorder& out) {
  std::vector<std::int32_t> steps;
  for (std::int32_t i = -160 * 16; i <= 130 * 16; ++i) {
    steps.push_back(exact::query_step(exact::exp2(static_cast<float>(i) / 16.0F)));
  }
  out.inputs("exp2(i/16) for i = -2560..2080");
  out.add("query_step", steps);

  std::vector<std::int32_t> weights;
  for (std::int32_t below = 0; below >= -12400; --below)
    weights.push_back(exact::attention_weight(below, 4096));
  out.inputs("step 4096, 0..-12400: every exponent");
  out.add("attention_weight/exponents", weights);
  weights.clear();
  Source source(5);
  for (const std::int32_t step : {16, 17, 1000, 4097, 70001, 1 << 20, (1 << 22) - 1, 1 << 22}) {
    const std::int32_t span = exact::kScoreSpan / step;
    for (int i = 0; i < 500; ++i) {
      weights.push_back(exact::attention_weight(
          -static_cast<std::int32_t>(source.below(static_cast<std::uint64_t>(span + 3))), step));
    }
    for (const std::int32_t below : {0, -span, -span - 1, -(1 << 24)}) {
      weights.push_back(exact::attention_weight(below, step));
    }
  }
  out.inputs(
      "seed 5; steps 16, 17, 1000, 4097, 70001, 2^20, 2^22-1, 2^22; 500 scores within the span and two more, "
      "then 0, the clamp, one less, -2^24");
  out.add("attention_weight/steps", weights);

  std::vector<std::int32_t> slots;
  for (std::int32_t slot = 0; slot < exact::kPageTokens; ++slot) slots.push_back(exact::value_slot(slot));
  out.inputs("slots 0..63");
  out.add("value_slot", slots);
}

void record_reductions(Recorder& out) {
  Source source(4);
  std::vector<float> sums;
  std::vector<float> factors;
  for (std::int64_t cols = 32; cols <= 2048; cols += 32) {
    const std::vector<float> x = floats(cols, 3.0F, source);
    sums.push_back(exact::sum_of_squares(x));
    factors.push_back(exact::inverse_rms(x, 1e-6F));
  }
  out.inputs("seed 4, rows of 32, 64 .. 2048 values in (-3, 3), epsilon 1e-6");
  out.add("sum_of_squares", sums);
  out.add("inverse_rms", factors);
}

}  // namespace

void record_arithmetic(Recorder& out) {
  record_functions(out);
  record_conversions(out);
  record_attention_steps(out);
  record_reductions(out);

  std::vector<std::uint64_t> random;
  for (const std::uint64_t seed : {0ULL, 1ULL, 0xFFFFFFFFFFFFFFFFULL}) {
    for (std::uint64_t position = 0; position < 64; ++position) {
      random.push_back(sampler::philox(seed, position));
    }
    random.push_back(sampler::philox(seed, 0xFFFFFFFFFFFFFFFFULL));
  }
  out.inputs("seeds 0, 1, 2^64-1; positions 0..63, 2^64-1");
  out.add("philox", random);

  for (const double base : {10000.0, 1000000.0}) {
    out.inputs(base == 10000.0 ? "base 10000, head size 64, 1024 positions"
                               : "base 1000000, head size 64, 1024 positions");
    out.add(base == 10000.0 ? "rope_table/1e4" : "rope_table/1e6",
            weights::rope_table(weights::rope_frequencies(base, 64), 4));
  }
}

}  // namespace fieldprint::vectors
