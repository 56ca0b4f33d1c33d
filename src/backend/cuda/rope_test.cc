#include "backend/cuda/rope.h"

#include <gtest/gtest.h>

#include <vector>

#include "backend/cuda/row_testing.h"
#include "backend/kernel_testing.h"
#include "backend/scalar/rope.h"

/// Steps so large that values go to their pages a word at a time.
namespace fieldprint::backend {
namespace {

using backend::testing::pick;
using backend::testing::Random;
using backend::testing::Values;

class CudaRope : public ::testing::TestWithParam<std::int32_t> {
 protected:
  void SetUp() override {
    if (!cuda::testing::has_device()) GTEST_SKIP() << "there is no GPU here";
  }
};
INSTANTIATE_TEST_SUITE_P(HeadSizes, CudaRope, ::testing::Values(16, 64, 80, 96, 128, 256),
                         [](const auto& dim) { return std::to_string(dim.param); });

/// Sequences of random lengths whose tokens follow each other from any slot on, each in blocks of its own.
struct Places {
  std::vector<std::int32_t> positions, blocks, slots;
  std::int32_t used_blocks = 0;

  Places(std::int64_t tokens, Random& random) {
    while (static_cast<std::int64_t>(slots.size()) < tokens) {
      const std::int64_t length =
          std::min<std::int64_t>(pick(random, 1, 300), tokens - static_cast<std::int64_t>(slots.size()));
      const std::int64_t start = pick(random, 0, 63);
      for (std::int64_t i = 0; i < length; ++i) {
        positions.push_back(static_cast<std::int32_t>(pick(random, 0, 8) == 0 ? 0 : pick(random, 1, 2047)));
        blocks.push_back(used_blocks + static_cast<std::int32_t>((start + i) / exact::kPageTokens));
        slots.push_back(static_cast<std::int32_t>((start + i) % exact::kPageTokens));
      }
      used_blocks = blocks.back() + 1;
    }
  }
};

TEST_P(CudaRope, ManyTokensEqualScalar) {
  const std::int32_t dim = GetParam();
  Random random(static_cast<std::uint64_t>(dim));
  constexpr std::int32_t kHeads = 6;
  constexpr std::int32_t kKvHeads = 2;
  for (const std::int64_t tokens : {511, 512, 700, 1500}) {
    const Places places(tokens, random);
    const std::vector<float> qkv =
        backend::testing::random_rows(tokens * (kHeads + 2 * kKvHeads), dim, random);
    const std::vector<float> norm = backend::testing::floats_of(Values::kOrdinary, dim, random);
    const auto channels = [&] {
      return backend::testing::floats_of(Values::kOrdinary, kKvHeads * dim, random);
    };
    const std::vector<float> offset = channels();
    const std::vector<float> k_inverse = channels();
    const std::vector<float> q_factor = channels();
    const std::vector<float> v_inverse = channels();
    const std::vector<float> sink = backend::testing::floats_of(Values::kOrdinary, 4 * kKvHeads, random);
    const std::vector<float> table = backend::testing::floats_of(Values::kOrdinary, 256 * dim / 2, random);
    const std::int64_t stride = kKvHeads * page_bytes(dim) + 64;
    struct Result {
      std::vector<std::uint8_t> pool;
      std::vector<std::int8_t> q;
      std::vector<std::int32_t> q_step;
      std::vector<std::int32_t> non_finite;
    };
    const auto run = [&](void (*kernel)(const RopeAppendArgs&, std::int64_t, std::int64_t)) {
      Result out{std::vector<std::uint8_t>(static_cast<std::size_t>(places.used_blocks * stride), 0xA5),
                 std::vector<std::int8_t>(static_cast<std::size_t>(tokens * kHeads * dim)),
                 std::vector<std::int32_t>(static_cast<std::size_t>(tokens * kHeads)),
                 std::vector<std::int32_t>(static_cast<std::size_t>(tokens))};
      const bool norms = dim % 32 == 0;
      kernel({.qkv = qkv.data(),
              .heads = kHeads,
              .kv_heads = kKvHeads,
              .head_dim = dim,
              .q_norm = norms ? norm.data() : nullptr,
              .k_norm = norms ? norm.data() : nullptr,
              .epsilon = 1e-6F,
              .rope = {table.data(), table.data(), table.data(), table.data()},
              .positions = places.positions.data(),
              .blocks = places.blocks.data(),
              .slots = places.slots.data(),
              .scales = {offset.data(), k_inverse.data(), q_factor.data(), v_inverse.data(), nullptr,
                         sink.data()},
              .kv = {out.pool.data(), stride, 64},
              .q = out.q.data(),
              .q_step = out.q_step.data(),
              .non_finite = out.non_finite.data()},
             0, tokens);
      return out;
    };
    const Result expected = run(scalar::rope_append);
    const Result actual = run(cuda::testing::rope_append);
    EXPECT_TRUE(expected.pool == actual.pool) << tokens << " tokens";
    EXPECT_TRUE(expected.q == actual.q) << tokens << " tokens";
    EXPECT_TRUE(expected.q_step == actual.q_step) << tokens << " tokens";
    EXPECT_TRUE(expected.non_finite == actual.non_finite);
  }
}

}  // namespace
}  // namespace fieldprint::backend
