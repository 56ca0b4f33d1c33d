#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"

/// Ed25519 (RFC 8032 §5.1), computed by OpenSSL.
namespace fieldprint::ledger {

using PublicKey = std::array<std::uint8_t, 32>;
using Signature = std::array<std::uint8_t, 64>;
using Seed = std::array<std::uint8_t, 32>;  ///< the private key of RFC 8032

/// A private key held by OpenSSL, which wipes it when the last copy goes.
class PrivateKey {
 public:
  static PrivateKey from_seed(const Seed& seed);
  static Result<PrivateKey> generate();

  PublicKey public_key() const;
  Seed seed() const;
  Signature sign(std::span<const std::uint8_t> message) const;

 private:
  struct Handle;
  explicit PrivateKey(std::shared_ptr<const Handle> handle) : handle_(std::move(handle)) {}
  std::shared_ptr<const Handle> handle_;
};

bool verify_signature(const PublicKey& key, std::span<const std::uint8_t> message,
                      std::span<const std::uint8_t> signature);

/// Whether a public key is a point of order 1, 2, 4 or 8, in any encoding. RFC 8032 accepts such keys, and
/// under one of them anybody can make signatures that verify.
bool is_small_order(const PublicKey& key);

/// Overwrites secret bytes in a way that the compiler keeps.
void wipe(std::span<std::uint8_t> secret);

}  // namespace fieldprint::ledger
