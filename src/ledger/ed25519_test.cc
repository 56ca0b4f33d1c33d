#include "ledger/ed25519.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <span>
#include <string_view>
#include <vector>

#include "base/sha256.h"

namespace fieldprint::ledger {
namespace {

template <class T>
T bytes(std::string_view hex) {
  T out{};
  EXPECT_TRUE(from_hex(hex, out));
  return out;
}

struct Vector {
  std::string_view seed, public_key, message, signature;
};

// RFC 8032 §7.1, TEST 1 to 3 and TEST SHA(abc).
constexpr Vector kVectors[] = {
    {"9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
     "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f"
     "0595bbe24"
     "655141438e7a100b"},
    {"4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
     "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2ea"
     "eb4302aee"
     "b00d291612bb0c00"},
    {"c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
     "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e"
     "9716ed28d"
     "c027beceea1ec40a"},
    {"833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
     "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
     "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d442"
     "3643ce80e"
     "2a9ac94fa54ca49f",
     "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179"
     "c138ac17a"
     "d9bef1177331a704"},
};

TEST(Ed25519, MatchesRfc8032) {
  for (const Vector& vector : kVectors) {
    const auto key = PrivateKey::from_seed(bytes<Seed>(vector.seed));
    std::vector<std::uint8_t> message(vector.message.size() / 2);
    ASSERT_TRUE(from_hex(vector.message, message));
    EXPECT_EQ(to_hex(key.public_key()), vector.public_key);
    EXPECT_EQ(to_hex(key.sign(message)), vector.signature);
    EXPECT_TRUE(
        verify_signature(bytes<PublicKey>(vector.public_key), message, bytes<Signature>(vector.signature)));
  }
}

TEST(Ed25519, RefusesAnotherMessageKeyOrSignature) {
  const auto key = PrivateKey::generate();
  ASSERT_TRUE(key.ok());
  const std::vector<std::uint8_t> message = {1, 2, 3};
  const std::vector<std::uint8_t> other = {1, 2, 4};
  Signature signature = key->sign(message);
  EXPECT_TRUE(verify_signature(key->public_key(), message, signature));
  EXPECT_FALSE(verify_signature(key->public_key(), other, signature));
  EXPECT_FALSE(verify_signature(PrivateKey::generate()->public_key(), message, signature));
  EXPECT_FALSE(verify_signature(key->public_key(), message, std::span(signature).first(63)));
  signature[40] ^= 1;
  EXPECT_FALSE(verify_signature(key->public_key(), message, signature));
}

// What a verifier must not take: the cases that Project Wycheproof asks about, with vectors of our own.
class Malleability : public ::testing::Test {
 protected:
  const PrivateKey key_ = PrivateKey::from_seed(bytes<Seed>(kVectors[2].seed));
  const std::vector<std::uint8_t> message_ = {0xaf, 0x82};
  const Signature good_ = bytes<Signature>(kVectors[2].signature);

  bool verifies(const Signature& signature) const {
    return verify_signature(key_.public_key(), message_, signature);
  }
};

TEST_F(Malleability, EveryBitOfASignatureCounts) {
  ASSERT_TRUE(verifies(good_));
  for (std::size_t bit = 0; bit < good_.size() * 8; ++bit) {
    Signature altered = good_;
    altered[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
    EXPECT_FALSE(verifies(altered)) << bit;
  }
}

TEST_F(Malleability, AScalarThatIsNotReducedIsRefused) {
  // RFC 8032 §5.1.7: S is in 0 … L-1; S + L would satisfy the equation too.
  const auto order = bytes<Seed>("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
  Signature same = good_;
  unsigned carry = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    carry += static_cast<unsigned>(same[32 + i]) + order[i];
    same[32 + i] = static_cast<std::uint8_t>(carry);
    carry >>= 8;
  }
  ASSERT_EQ(carry, 0u);
  EXPECT_FALSE(verifies(same));
  Signature order_alone = good_;
  std::copy(order.begin(), order.end(), order_alone.begin() + 32);
  EXPECT_FALSE(verifies(order_alone));
}

TEST_F(Malleability, NothingButSixtyFourBytesIsASignature) {
  const std::vector<std::uint8_t> longer = [&] {
    std::vector<std::uint8_t> out(good_.begin(), good_.end());
    out.push_back(0);
    return out;
  }();
  for (std::size_t size = 0; size <= longer.size(); ++size) {
    EXPECT_EQ(verify_signature(key_.public_key(), message_, std::span(longer).first(size)), size == 64)
        << size;
  }
  EXPECT_FALSE(verifies(Signature{}));
}

TEST_F(Malleability, TheHalvesBelongTogether) {
  const Signature other = key_.sign(std::vector<std::uint8_t>{1});
  Signature mixed = good_;
  std::copy(other.begin() + 32, other.end(), mixed.begin() + 32);
  EXPECT_FALSE(verifies(mixed));
  mixed = good_;
  std::copy(good_.begin(), good_.begin() + 32, mixed.begin() + 32);
  EXPECT_FALSE(verifies(mixed));
}

TEST_F(Malleability, WhatIsNoPointIsNoKey) {
  // y = 2 is of no point: (y² − 1)/(dy² + 1) has no square root.
  EXPECT_FALSE(verify_signature(PublicKey{2}, message_, good_));
  PublicKey mirrored = key_.public_key();
  mirrored.back() ^= 0x80;
  EXPECT_FALSE(verify_signature(mirrored, message_, good_));
}

TEST_F(Malleability, UnderAPointOfSmallOrderAnybodySigns) {
  // The neutral point as key and as R, S = 0: 0·B = R + k·A whatever the message.
  const PublicKey neutral = {1};
  Signature forged{};
  forged[0] = 1;
  EXPECT_TRUE(verify_signature(neutral, message_, forged));
  EXPECT_TRUE(verify_signature(neutral, std::vector<std::uint8_t>{7}, forged));
  EXPECT_TRUE(is_small_order(neutral));
}

TEST_F(Malleability, PointsOfSmallOrderAreKnownInEveryEncoding) {
  for (const std::string_view hex : {"0000000000000000000000000000000000000000000000000000000000000000",
                                     "0000000000000000000000000000000000000000000000000000000000000080",
                                     "0100000000000000000000000000000000000000000000000000000000000080",
                                     "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
                                     "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
                                     "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
                                     "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
                                     "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"}) {
    EXPECT_TRUE(is_small_order(bytes<PublicKey>(hex))) << hex;
  }
  for (const Vector& vector : kVectors) EXPECT_FALSE(is_small_order(bytes<PublicKey>(vector.public_key)));
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(is_small_order(PrivateKey::generate()->public_key()));
}

}  // namespace
}  // namespace fieldprint::ledger
