#include "backend/sha_ni/digest.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "backend/kernel_testing.h"
#include "base/sha256.h"

namespace fieldprint::backend {
namespace {

class ShaNiDigest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::cpu_has_sha_ni()) GTEST_SKIP() << sha_ni_obstacle();
  }

  /// Messages of one length that lie anywhere, two of them the same.
  void expect_sha256(std::size_t count, std::size_t bytes) {
    SCOPED_TRACE(std::to_string(count) + " messages of " + std::to_string(bytes));
    std::vector<std::uint8_t> memory((count + 1) * (bytes + 3));
    for (std::uint8_t& byte : memory) byte = static_cast<std::uint8_t>(random_());
    std::vector<const std::uint8_t*> messages;
    for (std::size_t i = 0; i < count; ++i)
      messages.push_back(memory.data() + (i % 5 * (bytes + 3)) % memory.size());
    std::vector<Digest> digests(count + 2, Digest{0xAA});
    sha_ni::digests({messages.data(), static_cast<std::int64_t>(bytes), digests[1].data()}, 0,
                    static_cast<std::int64_t>(count));
    for (std::size_t i = 0; i < count; ++i) {
      EXPECT_EQ(to_hex(digests[i + 1]), to_hex(sha256(std::span(messages[i], bytes)))) << "message " << i;
    }
    EXPECT_EQ(digests.front(), Digest{0xAA});
    EXPECT_EQ(digests.back(), Digest{0xAA});
  }

 private:
  std::mt19937_64 random_{7};
};

TEST_F(ShaNiDigest, EqualsSha256ForEveryLengthOfTheLastBlock) {
  for (std::size_t bytes = 0; bytes <= 200; ++bytes) expect_sha256(4, bytes);
}

TEST_F(ShaNiDigest, EqualsSha256ForAnyNumberOfPages) {
  for (std::size_t count = 0; count <= 10; ++count) {
    for (const std::int64_t head_dim : {16, 64, 256}) {
      expect_sha256(count, static_cast<std::size_t>(page_bytes(head_dim)));
    }
  }
}

TEST_F(ShaNiDigest, WritesTheRangeAlone) {
  const std::vector<std::uint8_t> page(640, 0x5B);
  const std::vector<const std::uint8_t*> messages(9, page.data());
  std::vector<Digest> digests(9, Digest{});
  const DigestArgs args{messages.data(), std::ssize(page), digests[0].data()};
  sha_ni::digests(args, 2, 7);
  for (std::size_t i = 0; i < digests.size(); ++i) {
    EXPECT_EQ(digests[i], i >= 2 && i < 7 ? sha256(page) : Digest{}) << i;
  }
}

/// FIPS 180-4's examples (csrc.nist.gov, SHA256.pdf).
TEST_F(ShaNiDigest, GivesThePublishedDigests) {
  const auto hex = [](std::string_view text) {
    const auto* const message = reinterpret_cast<const std::uint8_t*>(text.data());
    Digest digest{};
    sha_ni::digests({&message, std::ssize(text), digest.data()}, 0, 1);
    return to_hex(digest);
  };
  EXPECT_EQ(hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

}  // namespace
}  // namespace fieldprint::backend
