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
  std::vector<float> qkv, q_norm, k_norm, k_offset;
  std::vector<float> high_cos, high_sin, low_cos, low_sin;
  std::vector<std::int32_t> positions, blocks, slots;
  std::vector<std::uint8_t> pool;
  std::vector<std::int8_t> q;
  std::vector<float> q_scale;
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
                                 .k_offset = k_offset.data(),
                                 .score_scale = 0.18033688F,
                                 .kv = {pool.data(), 2 * layer_bytes(), layer_bytes()},
                                 .q = q.data(),
                                 .q_scale = q_scale.data(),
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

/// `any_values` mixes in rows with infinities, NaN, huge, tiny and zero values.
Append random_append(Random& random, std::int32_t head_dim, bool any_values) {
  Append a{};
  a.head_dim = head_dim;
  a.kv_heads = static_cast<std::int32_t>(pick(random, 1, 3));
  a.heads = a.kv_heads * static_cast<std::int32_t>(pick(random, 1, 4));
  const std::int64_t tokens = pick(random, 1, 12);
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
  make_tables(a);
  constexpr std::int64_t kBlocks = 3;
  const std::int64_t start = pick(random, 0, exact::kPageTokens * kBlocks - tokens);
  for (std::int64_t t = 0; t < tokens; ++t) {
    a.positions.push_back(static_cast<std::int32_t>(pick(random, 0, kContext - 1)));
    a.blocks.push_back(static_cast<std::int32_t>((start + t) / exact::kPageTokens));
    a.slots.push_back(static_cast<std::int32_t>((start + t) % exact::kPageTokens));
  }
  a.pool.resize(static_cast<std::size_t>(2 * kBlocks * a.layer_bytes()));
  a.q.resize(static_cast<std::size_t>(tokens * a.heads * head_dim));
  a.q_scale.resize(static_cast<std::size_t>(tokens * a.heads));
  a.non_finite.resize(static_cast<std::size_t>(tokens));
  return a;
}

void expect_same_results(const Append& a, const Append& b) {
  EXPECT_EQ(a.pool, b.pool);
  EXPECT_EQ(a.q, b.q);
  EXPECT_EQ(testing::first_difference(a.q_scale, b.q_scale), -1);
  EXPECT_EQ(a.non_finite, b.non_finite);
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
  const std::int64_t dim = a.head_dim;
  const std::vector<std::uint8_t> before = a.pool;
  a.run(GetParam(), 0, 1);
  std::vector<bool> mine(a.pool.size());
  for (std::int64_t h = 0; h < a.kv_heads; ++h) {
    const std::int64_t page = (2 * a.blocks[0] + 1) * a.layer_bytes() + h * page_bytes(dim);
    const auto own = [&](std::int64_t i) { mine[static_cast<std::size_t>(page + i)] = true; };
    for (std::int64_t d = 0; d < dim; ++d) own(a.slots[0] * dim + d);
    for (std::int64_t d = 0; d < dim; ++d) own((dim + d) * exact::kPageTokens + a.slots[0]);
    for (std::int64_t i = 0; i < 2; ++i) {
      own(2 * exact::kPageTokens * dim + 2 * a.slots[0] + i);
      own(2 * exact::kPageTokens * dim + 2 * (exact::kPageTokens + a.slots[0]) + i);
    }
  }
  std::size_t changed = 0;
  for (std::size_t i = 0; i < mine.size(); ++i) {
    if (!mine[i]) {
      EXPECT_EQ(a.pool[i], before[i]) << "byte " << i;
    }
    changed += mine[i] && a.pool[i] != before[i] ? 1 : 0;
  }
  EXPECT_GT(changed, static_cast<std::size_t>(a.kv_heads * dim));
}

/// The stored key is within half a quantum (and the rounding of the angle) of the rotated one in binary64.
TEST_P(RopeTest, RotatesByThePosition) {
  Random random(4);
  Append a = random_append(random, 64, false);
  std::fill(a.k_offset.begin(), a.k_offset.end(), 0.25F);
  a.q_norm.clear();
  a.k_norm.clear();
  a.run(GetParam(), 0, a.tokens());
  const std::int64_t dim = a.head_dim;
  for (std::int64_t t = 0; t < a.tokens(); ++t) {
    const std::size_t at = static_cast<std::size_t>(t);
    const float* x = a.qkv.data() + (t * (a.heads + 2 * a.kv_heads) + a.heads) * dim;
    const std::uint8_t* page = a.pool.data() + (2 * a.blocks[at] + 1) * a.layer_bytes();
    std::uint16_t bits = 0;
    std::memcpy(&bits, page + 2 * exact::kPageTokens * dim + 2 * a.slots[at], 2);
    const double scale = static_cast<double>(exact::from_bf16(bits));
    for (std::int64_t i = 0; i < dim / 2; ++i) {
      const double angle =
          a.positions[at] * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
      const double first = x[i] * std::cos(angle) - x[i + dim / 2] * std::sin(angle) - 0.25;
      const double second = x[i + dim / 2] * std::cos(angle) + x[i] * std::sin(angle) - 0.25;
      const auto stored = [&](std::int64_t d) {
        return scale * static_cast<double>(static_cast<std::int8_t>(page[a.slots[at] * dim + d]));
      };
      // The bf16 scale may be rounded down by 2^-9, which clamps the largest element by as much.
      EXPECT_LE(std::abs(stored(i) - first), scale * 0.76);
      EXPECT_LE(std::abs(stored(i + dim / 2) - second), scale * 0.76);
    }
  }
}

}  // namespace
}  // namespace fieldprint::backend
