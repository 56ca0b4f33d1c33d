#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <variant>

#include "server/request_head.h"

namespace fieldprint::server {

/// Why there is no request.
enum class NoRequest {
  kEnded,      ///< the client went away or is silent, or the server ends
  kTooLarge,   ///< its head is over bounds::kMaxHttpHeadBytes
  kTooSlow,    ///< its head took longer than bounds::kMaxHttpHeadTime, or than others could wait for
  kMalformed,  ///< its head is malformed
};

/// How long a head may take, from its first byte, while other clients wait for a place.
inline constexpr std::chrono::milliseconds kBriefHeadTime{500};

/// A connection to a client within the times that bounds.h allows. It does not own the socket.
class Connection {
 public:
  /// `stop_event` becomes readable when the server ends.
  Connection(int socket, int stop_event) : socket_(socket), stop_event_(stop_event) {}

  /// Waits for the head of the next request. `wanted`, asked now and then, says whether others need the
  /// connection's place: then silence ends it, and a head that has begun has kBriefHeadTime to come.
  std::variant<RequestHead, NoRequest> read_head(const std::function<bool()>& wanted);

  /// Starts the time that one answer may take to be sent.
  void begin_answer();
  /// Sends all of it; false if the client does not take it in time.
  bool send(std::string_view bytes);

  /// Says that nothing more will be sent, and lets the client read it before the socket is closed: what it
  /// still sends is thrown away, for a moment.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  enum class Ready { kYes, kTimeout, kStopping };
  /// For how long something may be waited for, and for how long whoever else wants the place.
  struct Times {
    Clock::time_point begun;
    Clock::duration most;
    Clock::duration brief{};
  };
  Ready wait(short events, Clock::time_point deadline) const;
  Ready wait_in_place(Times times, const std::function<bool()>& wanted) const;
  ssize_t receive(std::size_t most);

  int socket_;
  int stop_event_;
  std::string received_;  // what came after the last head
  Clock::time_point answer_deadline_{};
  bool stopping_ = false;
};

}  // namespace fieldprint::server
