#include "backend/cuda/digest.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "backend/cuda/row_testing.h"
#include "backend/kernel_testing.h"
#include "base/sha256.h"

namespace fieldprint::backend {
namespace {

using backend::testing::Random;
using cuda::testing::Mirror;

class CudaDigest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!cuda::testing::has_device()) GTEST_SKIP() << "there is no GPU here";
  }
};

/// The device's digests of `blocks` blocks, listed backwards, are the host's.
void expect_host_digests(std::int64_t blocks, std::int64_t pages, std::int64_t page_bytes, std::int64_t gap) {
  Random random(static_cast<std::uint64_t>(blocks * page_bytes));
  const std::int64_t stride = pages * page_bytes + gap;
  std::vector<std::uint8_t> pool(static_cast<std::size_t>(blocks * stride));
  for (std::uint8_t& byte : pool) byte = static_cast<std::uint8_t>(random());
  std::vector<std::int32_t> order;
  for (std::int64_t b = blocks - 1; b >= 0; --b) order.push_back(static_cast<std::int32_t>(b));
  std::vector<Digest> digests(static_cast<std::size_t>(blocks * pages));
  const Mirror device_pool(pool.data(), static_cast<std::int64_t>(pool.size()));
  const Mirror device_order(order.data(), blocks);
  const Mirror device_digests(digests.data(), blocks * pages);
  cuda::page_digests({device_pool.data(), stride, page_bytes, pages, device_order.data(), blocks * pages,
                      device_digests.data()->data()},
                     nullptr);
  device_digests.store();
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < blocks * pages; ++i) {
    const std::uint8_t* page = pool.data() + (blocks - 1 - i / pages) * stride + i % pages * page_bytes;
    const Digest expected = sha256(std::span(page, static_cast<std::size_t>(page_bytes)));
    wrong += expected == digests[static_cast<std::size_t>(i)] ? 0 : 1;
  }
  EXPECT_EQ(wrong, 0) << blocks << " blocks of " << pages << " pages of " << page_bytes << " bytes";
}

TEST_F(CudaDigest, EqualsTheHostForEveryLengthAroundABlock) {
  for (std::int64_t bytes = 1; bytes <= 200; ++bytes) expect_host_digests(3, 3, bytes, 5);
}

TEST_F(CudaDigest, EqualsTheHostForPagesOfEveryHeadSize) {
  for (const std::int64_t dim : {16, 64, 80, 96, 128, 256}) {
    expect_host_digests(5, 7, page_bytes(dim), 0);
    expect_host_digests(2, 3, page_bytes(dim), 1);
  }
}

TEST_F(CudaDigest, EqualsTheHostForMorePagesThanTheDeviceHasSchedulers) {
  expect_host_digests(20, 256, page_bytes(16), 0);
}

}  // namespace
}  // namespace fieldprint::backend
