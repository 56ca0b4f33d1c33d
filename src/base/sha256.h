#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace fieldprint {

using Digest = std::array<std::uint8_t, 32>;

/// SHA-256 (FIPS 180-4), computed by OpenSSL.
Digest sha256(std::span<const std::uint8_t> bytes);
Digest sha256(std::string_view bytes);
/// Of the parts, one after the other.
Digest sha256_of(std::initializer_list<std::span<const std::uint8_t>> parts);

/// Incremental SHA-256. One use: update any number of times, finish once.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  Sha256& update(std::span<const std::uint8_t> bytes);
  Sha256& update(std::string_view bytes);
  Sha256& update_u64(std::uint64_t value);  ///< eight bytes, little endian
  Digest finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Lower-case hexadecimal.
std::string to_hex(std::span<const std::uint8_t> bytes);

/// Parses exactly 2·out.size() hexadecimal digits; false if there are others.
bool from_hex(std::string_view hex, std::span<std::uint8_t> out);

}  // namespace fieldprint
