#include "backend/backend.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "backend/select.h"

namespace fieldprint::backend {
namespace {

struct Choice {
  std::string name;
  int threads;
};

std::vector<Choice> choices() {
  std::vector<Choice> all;
  for (const std::string& name : available_backends()) {
    for (const int threads : {1, 3}) all.push_back({name, threads});
  }
  return all;
}

class BackendTest : public ::testing::TestWithParam<Choice> {
 protected:
  BackendTest() : backend_(std::move(*select_backend(GetParam().name, GetParam().threads))) {}
  std::unique_ptr<Backend> backend_;
};
INSTANTIATE_TEST_SUITE_P(Here, BackendTest, ::testing::ValuesIn(choices()), [](const auto& choice) {
  return choice.param.name + "_" + std::to_string(choice.param.threads);
});

TEST_P(BackendTest, PageDigestsAreTheHostsSha256OfEachPage) {
  for (const std::int64_t page : {page_bytes(16), page_bytes(64), page_bytes(256), std::int64_t{1}}) {
    constexpr std::int64_t kPages = 7;
    constexpr std::int64_t kBlocks = 5;
    const std::int64_t stride = kPages * page + 40;
    std::vector<std::uint8_t> pool(static_cast<std::size_t>(kBlocks * stride));
    for (std::size_t i = 0; i < pool.size(); ++i) pool[i] = static_cast<std::uint8_t>(i * 31 + i / 251);
    // Out of order, and one of them twice.
    const std::vector<std::int32_t> blocks = {3, 0, 4, 3};
    std::uint8_t* device_pool = backend_->allocate(kBlocks * stride);
    backend_->upload(device_pool, pool.data(), kBlocks * stride);
    const auto pending = backend_->page_digests({device_pool, stride, page, kPages, blocks});
    // Others begin before the first have been waited for.
    const std::vector<std::int32_t> last = {4};
    const auto others = backend_->page_digests({device_pool, stride, page, kPages, last});
    const std::span<const Digest> digests = pending->wait();
    EXPECT_TRUE(std::ranges::equal(others->wait(), digests.subspan(2 * kPages, kPages)));
    EXPECT_TRUE(pending->ready());
    EXPECT_GT(pending->took().count(), 0);
    backend_->release(device_pool);
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      for (std::int64_t p = 0; p < kPages; ++p) {
        const std::uint8_t* at = pool.data() + blocks[b] * stride + p * page;
        EXPECT_EQ(digests[b * kPages + static_cast<std::size_t>(p)],
                  sha256(std::span(at, static_cast<std::size_t>(page))))
            << "block " << blocks[b] << ", page " << p;
      }
    }
  }
}

TEST_P(BackendTest, PageDigestsOfNoBlocksDoNothing) {
  const std::vector<std::uint8_t> pool(64);
  EXPECT_TRUE(backend_->page_digests({pool.data(), 64, 64, 1, {}})->wait().empty());
}

TEST_P(BackendTest, MemoryIsAlignedAndHoldsWhatWasPutThere) {
  std::vector<std::uint8_t> bytes(1000);
  std::iota(bytes.begin(), bytes.end(), std::uint8_t{0});
  for (const std::int64_t size : {std::int64_t{0}, std::int64_t{1}, std::int64_t{1000}}) {
    std::uint8_t* memory = backend_->allocate(size);
    std::uint8_t* other = backend_->allocate(size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % 64, 0U);
    backend_->upload(memory, bytes.data(), size);
    backend_->copy(other, memory, size);
    std::vector<std::uint8_t> back(static_cast<std::size_t>(size));
    backend_->download(back.data(), other, size);
    EXPECT_TRUE(std::equal(back.begin(), back.end(), bytes.begin()));
    std::vector<std::uint8_t> staging;
    EXPECT_EQ(std::memcmp(backend_->host_view(memory, size, staging), bytes.data(), back.size()), 0);
    backend_->clear(memory, size);
    backend_->download(back.data(), memory, size);
    EXPECT_EQ(std::count(back.begin(), back.end(), 0), size);
    backend_->release(memory);
    backend_->release(other);
  }
}

TEST_P(BackendTest, UploadedAndAdoptedDataMayBeOfAnySizeAndUploadsMayChangeAtOnce) {
  constexpr std::int64_t kBytes = 23'456'789;
  std::vector<std::uint8_t> bytes(kBytes);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(i * 31 + i / 65521);
  const std::vector<std::uint8_t> before = bytes;
  std::uint8_t* memory = backend_->allocate(kBytes);
  backend_->upload(memory, bytes.data(), kBytes);
  std::fill(bytes.begin(), bytes.end(), std::uint8_t{7});
  std::vector<std::uint8_t> back(kBytes);
  backend_->download(back.data(), memory, kBytes);
  EXPECT_TRUE(back == before);
  backend_->release(memory);
  backend_->download(back.data(), backend_->adopt(before.data(), kBytes), kBytes);
  EXPECT_TRUE(back == before);
}

TEST_P(BackendTest, AdoptedDataIsWhatStandsThereNow) {
  std::vector<std::uint8_t> bytes(1000, 1);
  const void* first = backend_->adopt(bytes.data(), 1000);
  EXPECT_EQ(backend_->adopt(bytes.data(), 1000), first);
  bytes[999] = 2;
  std::vector<std::uint8_t> back(1000);
  backend_->download(back.data(), backend_->adopt(bytes.data(), 1000), 1000);
  EXPECT_TRUE(back == bytes);
}

TEST_P(BackendTest, ClearedRowsAreZeroAndWhatLiesBetweenIsKept) {
  std::vector<std::uint8_t> bytes(100, 5);
  std::uint8_t* memory = backend_->allocate(100);
  backend_->upload(memory, bytes.data(), 100);
  backend_->clear_rows(memory + 3, 4, 10, 9);
  std::vector<std::uint8_t> back(100);
  backend_->download(back.data(), memory, 100);
  for (std::size_t i = 0; i < 100; ++i) {
    EXPECT_EQ(back[i], i < 93 && i % 10 >= 3 && i % 10 < 7 ? 0 : 5) << i;
  }
  backend_->release(memory);
}

}  // namespace
}  // namespace fieldprint::backend
