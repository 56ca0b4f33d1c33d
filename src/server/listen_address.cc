#include "server/listen_address.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <memory>

#include "base/file.h"

namespace fieldprint::server {
namespace {

constexpr int kBacklog = 128;
constexpr std::size_t kMaxHostBytes = 253;  // RFC 1035 §2.3.4, without the trailing dot

bool is_host(std::string_view host, bool bracketed) {
  const auto plain = [&](char c) {
    const bool alphanumeric = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    return alphanumeric || c == '.' || (bracketed ? c == ':' || c == '%' : c == '-' || c == '_');
  };
  return !host.empty() && host.size() <= kMaxHostBytes && std::all_of(host.begin(), host.end(), plain);
}

bool is_loopback(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    return ntohl(v4.sin_addr.s_addr) >> 24 == 127;
  }
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(&v6);
  return IN6_IS_ADDR_LOOPBACK(&v6) || (IN6_IS_ADDR_V4MAPPED(&v6) && bytes[12] == 127);
}

Result<Listening> describe(int socket) {
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  if (::getsockname(socket, reinterpret_cast<sockaddr*>(&bound), &size) != 0 ||
      ::getnameinfo(reinterpret_cast<sockaddr*>(&bound), size, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return environment_error("cannot find out the address that was bound");
  }
  std::uint16_t number = 0;
  std::from_chars(port, port + std::strlen(port), number);
  return Listening{socket, {host, number}, is_loopback(bound)};
}

}  // namespace

std::optional<ListenAddress> parse_listen_address(std::string_view text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return std::nullopt;
  std::string_view host = text.substr(0, colon);
  const std::string_view digits = text.substr(colon + 1);
  const bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  if (!is_host(host, bracketed) || (bracketed && host.find(':') == std::string_view::npos))
    return std::nullopt;
  ListenAddress address = {std::string(host), 0};
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), address.port);
  const bool plain = !digits.empty() && (digits.size() == 1 || digits.front() != '0');
  if (!plain || error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return address;
}

std::string to_string(const ListenAddress& address) {
  const bool bracketed = address.host.find(':') != std::string::npos;
  return fmt::format("{}{}{}:{}", bracketed ? "[" : "", address.host, bracketed ? "]" : "", address.port);
}

Result<Listening> listen_on(const ListenAddress& address) {
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  wanted.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int code =
          ::getaddrinfo(address.host.c_str(), fmt::format("{}", address.port).c_str(), &wanted, &found);
      code != 0) {
    const bool callers = code != EAI_AGAIN && code != EAI_MEMORY && code != EAI_SYSTEM;
    return Error{callers ? ErrorKind::kCaller : ErrorKind::kEnvironment,
                 fmt::format("cannot listen on {}: the host {}: {}", to_string(address),
                             callers ? "is unknown" : "cannot be looked up", ::gai_strerror(code))};
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> holder(found, &::freeaddrinfo);
  const auto failed = [&] {
    return environment_error(
        fmt::format("cannot listen on {}: {}", to_string(address), system_reason(errno)));
  };
  Descriptor socket(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return failed();
  // So that a server can start again at once; unlike SO_REUSEPORT it shares no port with another one.
  const int on = 1;
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      ::bind(socket.get(), found->ai_addr, found->ai_addrlen) != 0 || ::listen(socket.get(), kBacklog) != 0) {
    return failed();
  }
  auto listening = describe(socket.get());
  if (listening) listening->socket = socket.release();
  return listening;
}

}  // namespace fieldprint::server
