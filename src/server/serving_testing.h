#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "base/file.h"
#include "server/http_server.h"
#include "server/listen_address.h"

namespace fieldprint::server {

/// A client that sends what it likes.
class RawClient {
 public:
  explicit RawClient(int port) : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<std::uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }

  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (count <= 0) return false;
      bytes.remove_prefix(static_cast<std::size_t>(count));
    }
    return true;
  }

  /// What comes next; empty at the end.
  std::string receive() {
    char buffer[1 << 16];
    const ssize_t count = ::recv(socket_.get(), buffer, sizeof buffer, 0);
    return {buffer, static_cast<std::size_t>(std::max<ssize_t>(count, 0))};
  }

  std::string receive_all() {
    std::string all;
    for (std::string part = receive(); !part.empty(); part = receive()) all += part;
    return all;
  }

  bool has_answer() {
    pollfd polled = {socket_.get(), POLLIN, 0};
    return ::poll(&polled, 1, 0) > 0;
  }

 private:
  Descriptor socket_;
};

/// A server on a free port of this machine, with a thread of its own.
class Serving {
 public:
  explicit Serving(HttpServer::Handler handler, HttpServer::Observer observer = {}) {
    auto listening = listen_on({"127.0.0.1", 0});
    EXPECT_TRUE(listening.ok());
    port_ = listening->address.port;
    server_ = std::make_unique<HttpServer>(listening->socket, std::move(handler), std::move(observer));
    thread_ = std::thread([this] { server_->run(); });
  }
  ~Serving() { stop(); }
  Serving(const Serving&) = delete;
  Serving& operator=(const Serving&) = delete;

  int port() const { return port_; }
  httplib::Client client() const { return httplib::Client("127.0.0.1", port_); }

  void stop() {
    if (!thread_.joinable()) return;
    server_->stop();
    thread_.join();
  }

  /// The answers to what is sent, up to the end of the connection.
  std::string raw(std::string_view request) const {
    RawClient client(port_);
    client.send(request);
    return client.receive_all();
  }

  /// The answer to somebody who sends a byte again and again.
  std::string trickle(std::string_view begin, std::chrono::milliseconds pause) const {
    RawClient client(port_);
    client.send(begin);
    while (!client.has_answer() && client.send("x")) std::this_thread::sleep_for(pause);
    return client.receive_all();
  }

 private:
  int port_ = 0;
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
};

}  // namespace fieldprint::server
