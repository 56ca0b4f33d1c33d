#include "server/connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/bounds.h"

namespace fieldprint::server {
namespace {

constexpr std::chrono::milliseconds kLookAround{50};  // how soon an idle connection makes place
constexpr std::chrono::milliseconds kLinger{200};
constexpr std::size_t kChunk = 4096;

}  // namespace

// When the server ends, reading ends at once.
Connection::Ready Connection::wait(short events, Clock::time_point deadline) const {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
    if (left.count() <= 0) return Ready::kTimeout;
    pollfd polled[] = {{socket_, events, 0}, {stopping_ ? -1 : stop_event_, POLLIN, 0}};
    const int ready = ::poll(polled, 2, static_cast<int>(left.count()));
    if (ready < 0 && errno != EINTR) return Ready::kTimeout;
    if (ready <= 0) continue;
    if (polled[1].revents != 0) return Ready::kStopping;
    if (polled[0].revents != 0) return Ready::kYes;
  }
}

// As long as nobody else wants the place, or it is younger than `brief`.
Connection::Ready Connection::wait_in_place(Times times, const std::function<bool()>& wanted) const {
  const Clock::time_point end = times.begun + times.most;
  while (true) {
    const Ready ready = wait(POLLIN, std::min(end, Clock::now() + kLookAround));
    if (ready != Ready::kTimeout) return ready;
    const Clock::time_point now = Clock::now();
    if (now >= end || (now - times.begun >= times.brief && wanted())) return ready;
  }
}

ssize_t Connection::receive(std::size_t most) {
  char buffer[kChunk];
  ssize_t count = 0;
  do {
    count = ::recv(socket_, buffer, std::min(most, sizeof buffer), MSG_DONTWAIT);
  } while (count < 0 && errno == EINTR);
  if (count > 0) received_.append(buffer, static_cast<std::size_t>(count));
  return count;
}

std::variant<RequestHead, NoRequest> Connection::read_head(const std::function<bool()>& wanted) {
  const Times idle{.begun = Clock::now(), .most = bounds::kMaxHttpIdleTime};
  if (received_.empty() && wait_in_place(idle, wanted) != Ready::kYes) return NoRequest::kEnded;
  const Times head_times{.begun = Clock::now(), .most = bounds::kMaxHttpHeadTime, .brief = kBriefHeadTime};
  while (true) {
    if (auto head = take_head(received_)) {
      if (head->malformed) return NoRequest::kMalformed;
      return std::move(*head);
    }
    const std::size_t room = static_cast<std::size_t>(bounds::kMaxHttpHeadBytes) - received_.size();
    if (room == 0) return NoRequest::kTooLarge;
    const Ready ready = wait_in_place(head_times, wanted);
    if (ready == Ready::kStopping) return NoRequest::kEnded;
    if (ready == Ready::kTimeout) return NoRequest::kTooSlow;
    const ssize_t count = receive(room);
    if (count == 0 || (count < 0 && errno != EAGAIN)) return NoRequest::kEnded;
  }
}

void Connection::begin_answer() { answer_deadline_ = Clock::now() + bounds::kMaxHttpAnswerTime; }

bool Connection::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(count));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return false;
    const Ready ready = wait(POLLOUT, answer_deadline_);
    if (ready == Ready::kTimeout) return false;
    if (ready == Ready::kStopping) {
      stopping_ = true;
      answer_deadline_ = std::min(answer_deadline_, Clock::now() + bounds::kMaxHttpStopTime);
    }
  }
  return true;
}

// A socket that is closed with input unread resets the connection, and the answer may be lost on its way.
void Connection::finish() {
  if (::shutdown(socket_, SHUT_WR) != 0) return;
  const Clock::time_point deadline = Clock::now() + kLinger;
  while (wait(POLLIN, deadline) == Ready::kYes) {
    received_.clear();
    if (const ssize_t count = receive(kChunk); count == 0 || (count < 0 && errno != EAGAIN)) return;
  }
}

}  // namespace fieldprint::server
