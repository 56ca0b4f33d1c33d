#include "ledger/ed25519.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "base/sha256.h"

namespace fieldprint::ledger {
namespace {

struct ContextFree {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};
using Context = std::unique_ptr<EVP_MD_CTX, ContextFree>;

Context new_context() {
  Context context(EVP_MD_CTX_new());
  CHECK(context != nullptr, "OpenSSL is out of memory");
  return context;
}

}  // namespace

struct PrivateKey::Handle {
  EVP_PKEY* key;
  explicit Handle(EVP_PKEY* k) : key(k) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { EVP_PKEY_free(key); }
};

PrivateKey PrivateKey::from_seed(const Seed& seed) {
  EVP_PKEY* key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, seed.data(), seed.size());
  CHECK(key != nullptr, "OpenSSL offers no Ed25519");
  return PrivateKey(std::make_shared<const Handle>(key));
}

Result<PrivateKey> PrivateKey::generate() {
  Seed seed{};
  if (RAND_priv_bytes(seed.data(), static_cast<int>(seed.size())) != 1) {
    return environment_error("the operating system gave no random bytes for a signing key");
  }
  PrivateKey key = from_seed(seed);
  wipe(seed);
  return key;
}

PublicKey PrivateKey::public_key() const {
  PublicKey out{};
  std::size_t length = out.size();
  CHECK(EVP_PKEY_get_raw_public_key(handle_->key, out.data(), &length) == 1 && length == out.size());
  return out;
}

Seed PrivateKey::seed() const {
  Seed out{};
  std::size_t length = out.size();
  CHECK(EVP_PKEY_get_raw_private_key(handle_->key, out.data(), &length) == 1 && length == out.size());
  return out;
}

Signature PrivateKey::sign(std::span<const std::uint8_t> message) const {
  const Context context = new_context();
  Signature out{};
  std::size_t length = out.size();
  CHECK(EVP_DigestSignInit(context.get(), nullptr, nullptr, nullptr, handle_->key) == 1);
  CHECK(EVP_DigestSign(context.get(), out.data(), &length, message.data(), message.size()) == 1);
  CHECK(length == out.size());
  return out;
}

bool verify_signature(const PublicKey& key, std::span<const std::uint8_t> message,
                      std::span<const std::uint8_t> signature) {
  if (signature.size() != std::tuple_size_v<Signature>) return false;
  struct KeyFree {
    void operator()(EVP_PKEY* k) const { EVP_PKEY_free(k); }
  };
  const std::unique_ptr<EVP_PKEY, KeyFree> handle(
      EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, key.data(), key.size()));
  CHECK(handle != nullptr, "OpenSSL offers no Ed25519");
  const Context context = new_context();
  CHECK(EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, handle.get()) == 1);
  return EVP_DigestVerify(context.get(), signature.data(), signature.size(), message.data(),
                          message.size()) == 1;
}

bool is_small_order(const PublicKey& key) {
  // The y of these points, little endian: 0, 1 and -1, each as p allows, and the two of order 8.
  static constexpr std::string_view kOrdinates[] = {
      "0000000000000000000000000000000000000000000000000000000000000000",
      "0100000000000000000000000000000000000000000000000000000000000000",
      "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
      "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
      "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
      "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
      "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"};
  PublicKey ordinate = key;
  ordinate.back() &= 0x7f;  // the sign of x
  const std::string hex = to_hex(ordinate);
  return std::find(std::begin(kOrdinates), std::end(kOrdinates), hex) != std::end(kOrdinates);
}

void wipe(std::span<std::uint8_t> secret) { OPENSSL_cleanse(secret.data(), secret.size()); }

}  // namespace fieldprint::ledger
