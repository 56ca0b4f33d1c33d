#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

/// Where a server listens.
namespace fieldprint::server {

struct ListenAddress {
  std::string host;  ///< a name, an IPv4 address, or an IPv6 address without its brackets
  std::uint16_t port = 0;
  bool operator==(const ListenAddress&) const = default;
};

/// "127.0.0.1:8470", "localhost:0" or "[::1]:8470"; nothing for any other form.
std::optional<ListenAddress> parse_listen_address(std::string_view text);

/// The inverse of parse_listen_address.
std::string to_string(const ListenAddress& address);

/// A socket that listens.
struct Listening {
  int socket = -1;
  ListenAddress address;     ///< as bound: numbers only, and the port that was chosen if 0 was asked for
  bool is_loopback = false;  ///< whether only this machine reaches it
};

/// Listens on the first address that the host's name stands for. A name that stands for none is the caller's
/// error; a port in use, or one that may not be taken, is the environment's.
Result<Listening> listen_on(const ListenAddress& address);

}  // namespace fieldprint::server
