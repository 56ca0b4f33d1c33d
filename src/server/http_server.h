#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

/// An HTTP/1.1 server that keeps to the limits of base/bounds.h: so many connections at a time, heads so
/// large, and so much time for each part of an exchange. It knows no encryption and nobody's identity.
namespace fieldprint::server {

struct HttpRequest {
  std::string method;  ///< in capitals
  std::string target;  ///< as it was sent: neither unescaped nor cut at a query
  // Values of fields; several of one name are joined by commas, none gives an empty text.
  std::string accept_encoding;
  std::string if_none_match;
};

struct HttpAnswer {
  int status = 200;
  std::vector<std::pair<std::string, std::string>> fields;  ///< further names and values
  std::string content_type;                                 ///< of the body
  std::string body;  ///< what GET brings: HEAD is given the same fields, its length included
};

/// An exchange, for a log of accesses.
struct HttpAccess {
  std::string client;  ///< address
  // What a client may have put there: escape it before it is shown. Empty where its head was refused unread.
  std::string method;
  std::string target;
  int status = 0;
  std::size_t body_bytes = 0;  ///< of the answer to GET
};

class HttpServer {
 public:
  /// Called from several threads at once. Requests that are malformed are answered without it.
  using Handler = std::function<HttpAnswer(const HttpRequest&)>;
  using Observer = std::function<void(const HttpAccess&)>;

  /// Takes over a socket that listens (listen_on). `observer`, if set, hears of every answer.
  HttpServer(int socket, Handler handler, Observer observer = {});
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  /// Serves until stop(): once.
  void run();

  /// Takes no more connections, gives answers under way bounds::kMaxHttpStopTime, and has run() return; from
  /// any thread or signal handler, also before run(), and again.
  void stop();

 private:
  class Bounded;
  std::unique_ptr<Bounded> server_;
};

}  // namespace fieldprint::server
