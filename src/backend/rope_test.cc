#include "backend/avx2/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "backend/avx512/rope.h"
#include "backend/kernel_testing.h"
#include "backend/scalar/rope.h"
#if FIELDPRINT_HAS_CUDA
#include "backend/cuda/row_testing.h"
#endif
#include "exact/arith.h"

namespace fieldprint::backend {
namespace {

using testing::pick;
using testing::Random;
using testing::Values;

struct Kernel {
  const char* name;
  bool (*runs_here)();
  void (*rope_append)(const RopeAppendArgs&, std::int64_t, std::int64_t);
};

const Kernel kScalar = {"scalar", [] { return true; }, scalar::rope_append};
const Kernel kAvx2 = {"avx2", testing::cpu_has_avx2, avx2::rope_append};
const Kernel kAvx512 = {"avx512", testing::cpu_has_avx512, avx512::rope_append};

std::string name_of(const ::testing::TestParamInfo<Kernel>& info) { return info.param.name; }

class RopeTest : public ::testing::TestWithParam<Kernel> {
 protected:
  void SetUp() override {
    if (!GetParam().runs_here()) GTEST_SKIP() << "this machine lacks " << GetParam().name;
  }
};
class RopeDifferential : public RopeTest {};
INSTANTIATE_TEST_SUITE_P(Kernels, RopeTest, ::testing::Values(kScalar, kAvx2, kAvx512), name_of);
INSTANTIATE_TEST_SUITE_P(Kernels, RopeDifferential, ::testing::Values(kAvx2, kAvx512), name_of);
#if FIELDPRINT_HAS_CUDA
const Kernel kCuda = {"cuda", cuda::testing::has_device, cuda::testing::rope_append};
INSTANTIATE_TEST_SUITE_P(Device, RopeTest, ::testing::Values(kCuda), name_of);
INSTANTIATE_TEST_SUITE_P(Device, RopeDifferential, ::testing::Values(kCuda), name_of);
#endif

constexpr std::int64_t kContext = 2048;

/// Inputs of one call, and room for its results. Every array has exactly the size that the call defines.
struct Append {
  std::int32_t heads;
  std::int32_t kv_heads;
  std::int32_t head_dim;
  std::vector<float> qkv, q_norm, k_norm;
  std::vector<float> k_offset, k_inverse, q_factor, v_inverse, sink;
  std::vector<float> high_cos, high_sin, low_cos, low_sin;
  std::vector<std::int32_t> positions, blocks, slots;
  std::vector<std::uint8_t> pool;
  std::vector<std::int8_t> q;
  std::vector<std::int32_t> q_step;
  std::vector<std::int32_t> non_finite;

  std::int64_t tokens() const { return static_cast<std::int64_t>(positions.size()); }
  std::int64_t layer_bytes() const { return kv_heads * page_bytes(head_dim); }

  void run(const Kernel& kernel, std::int64_t begin, std::int64_t end) {
    const RopeAppendArgs args = {.qkv = qkv.data(),
                                 .heads = heads,
                                 .kv_heads = kv_heads,
                                 .head_dim = head_dim,
                                 .q_norm = q_norm.empty() ? nullptr : q_norm.data(),
                                 .k_norm = k_norm.empty() ? nullptr : k_norm.data(),
                                 .epsilon = 1e-6F,
                                 .rope = {high_cos.data(), high_sin.data(), low_cos.data(), low_sin.data()},
                                 .positions = positions.data(),
                                 .blocks = blocks.data(),
                                 .slots = slots.data(),
                                 .scales = {.k_offset = k_offset.data(),
                                            .k_inverse = k_inverse.data(),
                                            .q_factor = q_factor.data(),
                                            .v_inverse = v_inverse.data(),
                                            .v_scale = nullptr,
                                            .sink = sink.data()},
                                 .kv = {pool.data(), 2 * layer_bytes(), layer_bytes()},
                                 .q = q.data(),
                                 .q_step = q_step.data(),
                                 .non_finite = non_finite.data()};
    kernel.rope_append(args, begin, end);
  }
};

void make_tables(Append& a) {
  const std::int64_t half = a.head_dim / 2;
  const auto fill = [&](std::int64_t rows, double step, std::vector<float>& cos, std::vector<float>& sin) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle = static_cast<double>(r) * step *
                             std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half));
        cos.push_back(static_cast<float>(std::cos(angle)));
        sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
  };
  fill(kContext / exact::kRopeLow, exact::kRopeLow, a.high_cos, a.high_sin);
  fill(exact::kRopeLow, 1.0, a.low_cos, a.low_sin);
}

/// Scales near `levels`, of which a key or value in (-1, 1) has about that many.
std::vector<float> random_scales(std::int64_t size, float levels, Random& random) {
  std::vector<float> scales = testing::floats_of(Values::kOrdinary, size, random);
  for (float& scale : scales) scale = levels * (1.0F + 0.5F * scale);
  return scales;
}

/// `any_values` mixes in rows with infinities, NaN, huge, tiny and zero values.
Append random_append(Random& random, std::int32_t head_dim, bool any_values) {
  Append a{};
  a.head_dim = head_dim;
  a.kv_heads = static_cast<std::int32_t>(pick(random, 1, 3));
  a.heads = a.kv_heads * static_cast<std::int32_t>(pick(random, 1, 4));
  const std::int64_t tokens = random() % 4 == 0 ? pick(random, 1, 150) : pick(random, 1, 12);
  for (std::int64_t r = 0; r < tokens * (a.heads + 2 * a.kv_heads); ++r) {
    const auto kind = any_values ? static_cast<Values>(random() % testing::kValueKinds) : Values::kOutlier;
    for (std::int64_t i = 0; i < head_dim; ++i) a.qkv.push_back(testing::value_of(kind, random));
  }
  if (head_dim % 32 == 0 && random() % 2 == 0) {
    a.q_norm = testing::floats_of(Values::kOrdinary, head_dim, random);
    a.k_norm = testing::floats_of(Values::kOrdinary, head_dim, random);
  }
  const Values offset = random() % 2 == 0 ? Values::kZero : Values::kOrdinary;
  a.k_offset = testing::floats_of(offset, a.kv_heads * head_dim, random);
  const std::int64_t channels = a.kv_heads * head_dim;
  // In some calls most elements are clamped.
  a.k_inverse = random_scales(channels, random() % 4 == 0 ? 4000.0F : 100.0F, random);
  a.v_inverse = random_scales(channels, random() % 4 == 0 ? 4000.0F : 100.0F, random);
  constexpr float kQueryFactors[] = {0x1p-20F, 0.02F, 1.0F, 300.0F};
  a.q_factor = random_scales(channels, kQueryFactors[random() % 4], random);
  for (std::int64_t h = 0; h < a.kv_heads; ++h) {
    for (const float inverse : random_scales(2, 0.3F, random)) {
      a.sink.push_back(inverse);
      a.sink.push_back(1.0F / inverse);
    }
  }
  make_tables(a);
  constexpr std::int64_t kBlocks = 3;
  const std::int64_t start = pick(random, 0, exact::kPageTokens * kBlocks - tokens);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const bool in_sink = random() % 8 == 0;
    a.positions.push_back(in_sink ? 0 : static_cast<std::int32_t>(pick(random, 0, kContext - 1)));
    a.blocks.push_back(static_cast<std::int32_t>((start + t) / exact::kPageTokens));
    a.slots.push_back(static_cast<std::int32_t>((start + t) % exact::kPageTokens));
  }
  a.pool.resize(static_cast<std::size_t>(2 * kBlocks * a.layer_bytes()));
  a.q.resize(static_cast<std::size_t>(tokens * a.heads * head_dim));
  a.q_step.resize(static_cast<std::size_t>(tokens * a.heads));
  a.non_finite.resize(static_cast<std::size_t>(tokens));
  return a;
}

/// The index in the pool of one head's page for token t.
std::int64_t page_at(const Append& a, std::int64_t t, std::int64_t head) {
  const std::int64_t block = a.blocks[static_cast<std::size_t>(t)];
  return (2 * block + 1) * a.layer_bytes() + head * page_bytes(a.head_dim);
}

/// Index in the pool of each byte that token t's key and value of one head are stored in: keys, then values.
std::vector<std::size_t> bytes_of(const Append& a, std::int64_t t, std::int64_t head) {
  const std::int32_t slot = a.slots[static_cast<std::size_t>(t)];
  const std::int64_t page = page_at(a, t, head);
  std::vector<std::size_t> bytes;
  for (std::int64_t d = 0; d < a.head_dim; ++d) {
    bytes.push_back(static_cast<std::size_t>(page + slot * a.head_dim + d));
  }
  for (std::int64_t d = 0; d < a.head_dim; ++d) {
    const std::int64_t row = page + (a.head_dim + d) * exact::kPageTokens;
    bytes.push_back(static_cast<std::size_t>(row + exact::value_slot(slot)));
  }
  return bytes;
}

/// What a flagged token leaves in its page is not defined.
std::vector<std::uint8_t> defined_pool(const Append& a) {
  std::vector<std::uint8_t> pool = a.pool;
  for (std::int64_t t = 0; t < a.tokens(); ++t) {
    if (a.non_finite[static_cast<std::size_t>(t)] == 0) continue;
    for (std::int64_t h = 0; h < a.kv_heads; ++h) {
      for (const std::size_t i : bytes_of(a, t, h)) pool[i] = 0;
    }
  }
  return pool;
}

void expect_same_results(const Append& a, const Append& b) {
  EXPECT_EQ(a.non_finite, b.non_finite);
  EXPECT_EQ(defined_pool(a), defined_pool(b));
  EXPECT_EQ(a.q, b.q);
  EXPECT_EQ(a.q_step, b.q_step);
}

TEST_P(RopeDifferential, EqualsScalarForAnyRows) {
  Random random(1);
  constexpr std::int32_t kDims[] = {16, 32, 48, 64, 80, 96, 112, 128, 256};
  for (int round = 0; round < 300; ++round) {
    Append expected = random_append(random, kDims[random() % 9], true);
    Append actual = expected;
    expected.run(kScalar, 0, expected.tokens());
    actual.run(GetParam(), 0, actual.tokens());
    expect_same_results(expected, actual);
    if (HasFailure()) FAIL() << "round " << round << ", head size " << expected.head_dim;
  }
}

TEST_P(RopeTest, ItemsAreIndependent) {
  Random random(2);
  Append whole = random_append(random, 64, false);
  Append parts = whole;
  whole.run(GetParam(), 0, whole.tokens());
  for (std::int64_t t = parts.tokens() - 1; t >= 0; --t) parts.run(GetParam(), t, t + 1);
  expect_same_results(whole, parts);
}

TEST_P(RopeTest, WritesNothingOutsideTheTokensSlot) {
  Random random(3);
  Append a = random_append(random, 80, false);
  std::fill(a.pool.begin(), a.pool.end(), std::uint8_t{0xA5});
  const std::vector<std::uint8_t> before = a.pool;
  a.run(GetParam(), 0, 1);
  std::vector<bool> mine(a.pool.size());
  for (std::int64_t h = 0; h < a.kv_heads; ++h) {
    for (const std::size_t i : bytes_of(a, 0, h)) mine[i] = true;
  }
  std::size_t changed = 0;
  for (std::size_t i = 0; i < mine.size(); ++i) {
    if (!mine[i]) {
      EXPECT_EQ(a.pool[i], before[i]) << "byte " << i;
    }
    changed += mine[i] && a.pool[i] != before[i] ? 1 : 0;
  }
  EXPECT_GT(changed, static_cast<std::size_t>(a.kv_heads * a.head_dim));
}

/// Element d of the head at x, rotated to `position`, in binary64.
double rotated(const float* x, std::int64_t d, std::int64_t dim, std::int32_t position) {
  const std::int64_t i = d % (dim / 2);
  const double angle = position * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
  const double a = static_cast<double>(x[i]);
  const double b = static_cast<double>(x[i + dim / 2]);
  return d == i ? a * std::cos(angle) - b * std::sin(angle) : b * std::cos(angle) + a * std::sin(angle);
}

double clamped(double level) { return std::fmax(-127.0, std::fmin(127.0, level)); }

/// Approximate: what is stored is within half a level (and the rounding of the angle) of binary64's.
TEST_P(RopeTest, RotatesScalesAndClamps) {
  constexpr double kHalf = 0.51;
  Random random(4);
  for (int round = 0; round < 20; ++round) {
    Append a = random_append(random, 64, false);
    a.q_norm.clear();
    a.k_norm.clear();
    for (float& x : a.qkv) x *= 0.05F;
    a.run(GetParam(), 0, a.tokens());
    const std::int64_t dim = a.head_dim;
    for (std::int64_t t = 0; t < a.tokens(); ++t) {
      const std::int32_t position = a.positions[static_cast<std::size_t>(t)];
      const float* row = a.qkv.data() + t * (a.heads + 2 * a.kv_heads) * dim;
      for (std::int64_t h = 0; h < a.heads; ++h) {
        const std::int64_t index = t * a.heads + h;
        const float* factor = a.q_factor.data() + h / (a.heads / a.kv_heads) * dim;
        const double unit = a.q_step[static_cast<std::size_t>(index)] * 0x1p-22;
        for (std::int64_t d = 0; d < dim; ++d) {
          const double wanted = rotated(row + h * dim, d, dim, position) * static_cast<double>(factor[d]);
          EXPECT_LE(std::abs(a.q[static_cast<std::size_t>(index * dim + d)] - clamped(wanted / unit)), kHalf);
        }
      }
      for (std::int64_t h = 0; h < a.kv_heads; ++h) {
        const float* sink = a.sink.data() + 4 * h;
        const double key_factor = static_cast<double>(position == 0 ? sink[kSinkKeyInverse] : 1.0F);
        const double value_factor = static_cast<double>(position == 0 ? sink[kSinkValueInverse] : 1.0F);
        const std::vector<std::size_t> bytes = bytes_of(a, t, h);
        for (std::int64_t d = 0; d < dim; ++d) {
          const std::size_t channel = static_cast<std::size_t>(h * dim + d);
          const double key =
              rotated(row + (a.heads + h) * dim, d, dim, position) - static_cast<double>(a.k_offset[channel]);
          const double value = static_cast<double>(row[(a.heads + a.kv_heads + h) * dim + d]);
          const auto stored = [&](std::int64_t i) {
            return static_cast<std::int8_t>(a.pool[bytes[static_cast<std::size_t>(i)]]);
          };
          const double key_levels = key * static_cast<double>(a.k_inverse[channel]) * key_factor;
          const double value_levels = value * static_cast<double>(a.v_inverse[channel]) * value_factor;
          EXPECT_LE(std::abs(stored(d) - clamped(key_levels)), kHalf);
          EXPECT_LE(std::abs(stored(dim + d) - clamped(value_levels)), kHalf);
        }
      }
    }
  }
}

/// One token, one head, no norm, position 1 with angle 0: the query is its row times the factors.
Append plain_append(std::vector<float> qkv, float q_factor) {
  Random random(5);
  Append a = random_append(random, 16, false);
  const std::size_t dim = 16;
  a.heads = a.kv_heads = 1;
  a.q_norm.clear();
  a.k_norm.clear();
  a.qkv = std::move(qkv);
  a.qkv.resize(3 * dim);
  a.k_offset.assign(dim, 0.0F);
  a.k_inverse.assign(dim, 1.0F);
  a.v_inverse.assign(dim, 1.0F);
  a.q_factor.assign(dim, q_factor);
  a.positions = {1};
  a.blocks = {0};
  a.slots = {41};
  std::fill(a.low_cos.begin(), a.low_cos.end(), 1.0F);
  std::fill(a.low_sin.begin(), a.low_sin.end(), 0.0F);
  return a;
}

TEST_P(RopeTest, StepsHaveTheirBounds) {
  struct Case {
    float largest, factor;
    std::int32_t step;
    std::int8_t q;
  };
  const Case cases[] = {{0.0F, 1.0F, exact::kSmallestStep, 0},
                        {0x1p-149F, 1.0F, exact::kSmallestStep, 0},
                        // 8 of the smallest levels, and half a level more is a tie.
                        {8.0F * 16 * 0x1p-22F, 1.0F, exact::kSmallestStep, 8},
                        {8.5F * 16 * 0x1p-22F, 1.0F, exact::kSmallestStep, 8},
                        {1.0F, 1.0F, 33027, 127},
                        {126.0F, 1.0F, 4161279, 127},
                        {127.0F, 1.0F, exact::kLargestStep, 127},
                        {-4000.0F, 1.0F, exact::kLargestStep, -127},
                        {1e38F, 1.0F, exact::kLargestStep, 127}};
  for (const Case& c : cases) {
    Append a = plain_append({c.largest}, c.factor);
    a.run(GetParam(), 0, 1);
    EXPECT_EQ(a.q_step[0], c.step) << c.largest;
    EXPECT_EQ(a.q[0], c.q) << c.largest;
    EXPECT_EQ(a.non_finite[0], 0) << c.largest;
  }
}

TEST_P(RopeTest, FlagsQueriesThatTheFactorTakesToInfinity) {
  Append a = plain_append({1.0F, 1e30F}, 1e20F);
  a.q.assign(a.q.size(), 77);
  a.run(GetParam(), 0, 1);
  EXPECT_EQ(a.non_finite[0], 1);
  EXPECT_EQ(a.q_step[0], exact::kSmallestStep);
  for (std::size_t d = 0; d < 16; ++d) EXPECT_EQ(a.q[d], 0);
}

/// Only the rotated key itself counts: less its offset and scaled it may be as large as it likes.
TEST_P(RopeTest, KeysAndValuesAreClampedNotFlagged) {
  std::vector<float> qkv(48);
  qkv[16] = 3e38F;
  qkv[17] = -3e38F;
  qkv[32] = -3e38F;
  qkv[33] = 126.5F;
  Append a = plain_append(qkv, 1.0F);
  a.k_inverse.assign(16, 1e10F);
  a.run(GetParam(), 0, 1);
  EXPECT_EQ(a.non_finite[0], 0);
  const std::vector<std::size_t> bytes = bytes_of(a, 0, 0);
  const auto stored = [&](std::size_t i) { return static_cast<std::int8_t>(a.pool[bytes[i]]); };
  EXPECT_EQ(stored(0), 127);
  EXPECT_EQ(stored(1), -127);
  EXPECT_EQ(stored(16), -127);
  EXPECT_EQ(stored(17), 126);
}

}  // namespace
}  // namespace fieldprint::backend
