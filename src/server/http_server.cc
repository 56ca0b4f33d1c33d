#include "server/http_server.h"

#include <fmt/format.h>
#include <httplib.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "base/bounds.h"
#include "base/check.h"
#include "base/file.h"
#include "server/connection.h"

namespace fieldprint::server {
namespace {

constexpr int kRetryMilliseconds = 10;

/// Threads that serve connections, and a queue of those that wait. Where it is full whoever accepts
/// connections waits, and so do clients, in the system's own queue.
class Crew {
 public:
  Crew(std::atomic<int>& waiting, std::function<void(int socket)> serve)
      : waiting_(waiting), serve_(std::move(serve)) {
    for (int i = 0; i < bounds::kHttpThreads; ++i) threads_.emplace_back([this] { work(); });
  }
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // Every connection that was handed over is served before.
  ~Crew() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    filled_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void take(int socket) {
    std::unique_lock lock(mutex_);
    room_.wait(lock, [&] { return waiting_ < bounds::kMaxHttpWaiting; });
    sockets_.push_back(socket);
    ++waiting_;
    filled_.notify_one();
  }

 private:
  void work() {
    while (true) {
      int socket = -1;
      {
        std::unique_lock lock(mutex_);
        filled_.wait(lock, [&] { return !sockets_.empty() || ended_; });
        if (sockets_.empty()) return;
        socket = sockets_.front();
        sockets_.pop_front();
        --waiting_;
      }
      room_.notify_one();
      serve_(socket);
    }
  }

  std::atomic<int>& waiting_;
  std::function<void(int socket)> serve_;
  std::mutex mutex_;
  std::condition_variable filled_;
  std::condition_variable room_;
  std::deque<int> sockets_;
  std::vector<std::thread> threads_;
  bool ended_ = false;
};

void name_peer(int socket, decltype(::getpeername)* ask, std::string& host, int& port) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  char text[NI_MAXHOST];
  if (ask(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return;
  if (::getnameinfo(reinterpret_cast<sockaddr*>(&address), size, text, sizeof text, nullptr, 0,
                    NI_NUMERICHOST) != 0)
    return;
  host = text;
  port = ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                             : reinterpret_cast<sockaddr_in&>(address).sin_port);
}

/// One exchange as httplib sees it: it reads a head that is there already, and writes to the connection.
class Exchange final : public httplib::Stream {
 public:
  Exchange(Connection& connection, int socket, std::string_view head)
      : connection_(connection), socket_(socket), head_(head) {}

  bool is_readable() const override { return !head_.empty(); }
  bool is_writable() const override { return true; }
  ssize_t read(char* to, std::size_t most) override {
    const std::size_t count = head_.copy(to, most);
    head_.remove_prefix(count);
    return static_cast<ssize_t>(count);
  }
  ssize_t write(const char* from, std::size_t size) override {
    return connection_.send({from, size}) ? static_cast<ssize_t>(size) : -1;
  }
  void get_remote_ip_and_port(std::string& ip, int& port) const override {
    name_peer(socket_, ::getpeername, ip, port);
  }
  void get_local_ip_and_port(std::string& ip, int& port) const override {
    name_peer(socket_, ::getsockname, ip, port);
  }
  socket_t socket() const override { return socket_; }

 private:
  Connection& connection_;
  int socket_;
  std::string_view head_;
};

std::string joined(const httplib::Request& request, const char* name) {
  std::string values;
  const auto [begin, end] = request.headers.equal_range(name);
  for (auto field = begin; field != end; ++field) {
    if (field != begin) values += ", ";
    values += field->second;
  }
  return values;
}

struct Refusal {
  int status = 0;  // 0: nothing is sent
  std::string_view reason;
};

// What httplib does not get to see is answered without it.
Refusal refusal(NoRequest why) {
  switch (why) {
    case NoRequest::kMalformed:
      return {400, "Bad Request"};
    case NoRequest::kTooSlow:
      return {408, "Request Timeout"};
    case NoRequest::kTooLarge:
      return {431, "Request Header Fields Too Large"};
    case NoRequest::kEnded:
      break;
  }
  return {};
}

}  // namespace

// httplib parses heads and writes answers. Connections are accepted and read here: its own reading knows no
// limit for a whole head, none for its time and none for how many connections wait, it ends lines at LF alone
// too, and it answers ranges that overlap, or that lie beyond the resource.
class HttpServer::Bounded final : public httplib::Server {
 public:
  Bounded(int listening, HttpServer::Handler handler, Observer observer)
      : listening_(listening),
        handler_(std::move(handler)),
        observer_(std::move(observer)),
        stop_event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    CHECK(stop_event_.valid(), "no eventfd: {}", system_reason(errno));
    svr_sock_ = listening;  // httplib cuts answers off where it has none
    set_keep_alive_max_count(bounds::kMaxHttpConnectionRequests);
    set_keep_alive_timeout(
        std::chrono::duration_cast<std::chrono::seconds>(bounds::kMaxHttpIdleTime).count());
    set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
      answer(request, response);
      return HandlerResponse::Handled;
    });
    set_exception_handler(
        [](const httplib::Request&, httplib::Response& response, const std::exception_ptr&) {
          response = httplib::Response();
          response.status = 500;
        });
    // RFC 9110 §8.6: the length of what 304 stands for, or none; httplib would state 0.
    set_post_routing_handler([](const httplib::Request&, httplib::Response& response) {
      if (response.status == 304) response.headers.erase("Content-Length");
    });
    if (observer_) {
      set_logger([this](const httplib::Request& request, const httplib::Response& response) {
        observer_({request.remote_addr, request.method, request.target, response.status,
                   response.content_length_ + response.body.size()});
      });
    }
  }

  void run() {
    Crew crew(waiting_, [this](int socket) { serve(socket); });
    while (!stopping_) {
      pollfd polled[] = {{listening_.get(), POLLIN, 0}, {stop_event_.get(), POLLIN, 0}};
      if (::poll(polled, 2, -1) <= 0 || polled[1].revents != 0) continue;
      const int socket = ::accept4(listening_.get(), nullptr, nullptr, SOCK_CLOEXEC);
      if (socket >= 0) {
        crew.take(socket);
        continue;
      }
      CHECK(errno != EBADF && errno != EINVAL && errno != ENOTSOCK, "no socket that listens");
      // A client that went away, or no descriptor or memory for one: those come back.
      ::poll(polled + 1, 1, kRetryMilliseconds);
    }
  }

  // For signal handlers too: an atomic flag and write(2).
  void end() {
    stopping_ = true;
    const std::uint64_t one = 1;
    CHECK(::write(stop_event_.get(), &one, sizeof one) == sizeof one, "eventfd: {}", system_reason(errno));
  }

 private:
  void serve(int socket) {
    const Descriptor owner(socket);
    const int on = 1;  // head and body are sent one after the other
    ::setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    Connection connection(socket, stop_event_.get());
    bool goes_on = true;
    for (int left = bounds::kMaxHttpConnectionRequests; goes_on && left > 0; --left) {
      auto head = connection.read_head([this] { return waiting_ > 0; });
      connection.begin_answer();
      if (const auto* why = std::get_if<NoRequest>(&head)) {
        refuse(connection, socket, refusal(*why));
        break;
      }
      goes_on = exchange(connection, socket, std::get<RequestHead>(head), left == 1);
    }
    connection.finish();
  }

  void refuse(Connection& connection, int socket, const Refusal& refusal) {
    if (refusal.status == 0) return;
    connection.send(fmt::format("HTTP/1.1 {} {}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                                refusal.status, refusal.reason));
    if (!observer_) return;
    HttpAccess access;
    int port = 0;
    name_peer(socket, ::getpeername, access.client, port);
    access.status = refusal.status;
    observer_(access);
  }

  // Whether the connection may be used again.
  bool exchange(Connection& connection, int socket, const RequestHead& head, bool last) {
    // A body is not read, so that what follows is no request.
    const bool close = last || head.has_body || head.closes || stopping_ || waiting_ > 0;
    bool closed = false;
    bool understood = false;
    Exchange stream(connection, socket, head.text);
    const bool sent = process_request(stream, close, closed, [&](httplib::Request& request) {
      understood = true;
      request.ranges.clear();
    });
    return sent && understood && !closed && !close;
  }

  void answer(const httplib::Request& request, httplib::Response& response) {
    HttpAnswer made = handler_({request.method, request.target, joined(request, "Accept-Encoding"),
                                joined(request, "If-None-Match")});
    response.status = made.status;
    for (const auto& [name, value] : made.fields) response.set_header(name, value);
    if (made.body.empty()) return;
    // Through a provider, because httplib would compress a text as the client likes it.
    const auto body = std::make_shared<const std::string>(std::move(made.body));
    response.set_content_provider(body->size(), made.content_type,
                                  [body](std::size_t offset, std::size_t length, httplib::DataSink& sink) {
                                    CHECK(offset <= body->size() && length <= body->size() - offset,
                                          "{} bytes from {} of {}", length, offset, body->size());
                                    return sink.write(body->data() + offset, length);
                                  });
  }

  const Descriptor listening_;
  HttpServer::Handler handler_;
  Observer observer_;
  const Descriptor stop_event_;
  static_assert(std::atomic<bool>::is_always_lock_free);
  std::atomic<bool> stopping_{false};
  std::atomic<int> waiting_{0};  // connections that no thread has taken up yet
};

HttpServer::HttpServer(int socket, Handler handler, Observer observer)
    : server_(std::make_unique<Bounded>(socket, std::move(handler), std::move(observer))) {}
HttpServer::~HttpServer() = default;
void HttpServer::run() { server_->run(); }
void HttpServer::stop() { server_->end(); }

}  // namespace fieldprint::server
