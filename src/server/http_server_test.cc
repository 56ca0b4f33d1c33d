#include "server/http_server.h"

#include <gtest/gtest.h>
#include <httplib.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "base/bounds.h"
#include "server/serving_testing.h"

namespace fieldprint::server {
namespace {

using Clock = std::chrono::steady_clock;

HttpAnswer echo(const HttpRequest& request) {
  return {
      200, {{"X-Encoding", request.accept_encoding}}, "text/plain", request.method + " " + request.target};
}

TEST(HttpServer, RequestsReachTheHandlerAsTheyWereSent) {
  Serving serving(echo);
  auto client = serving.client();
  auto got = client.Get("/a%20b?c=d&e", {{"Accept-Encoding", "x"}});
  ASSERT_TRUE(got);
  EXPECT_EQ(got->status, 200);
  EXPECT_EQ(got->body, "GET /a%20b?c=d&e");
  EXPECT_EQ(got->get_header_value("X-Encoding"), "x");
  EXPECT_EQ(got->get_header_value_count("Content-Type"), 1u);
  got = client.Head("/a");
  ASSERT_TRUE(got);
  EXPECT_EQ(got->get_header_value("Content-Length"), "7");
  EXPECT_EQ(got->body, "");
  for (const auto& answer :
       {client.Post("/a", "body", "text/plain"), client.Delete("/a"), client.Options("/a")}) {
    ASSERT_TRUE(answer);
    EXPECT_EQ(answer->status, 200);
  }
}

TEST(HttpServer, TextsAreSentAsTheyAre) {
  Serving serving([](const HttpRequest&) {
    return HttpAnswer{200, {}, "text/plain", std::string(5000, 'a')};
  });
  const std::string answer =
      serving.raw("GET /x HTTP/1.1\r\nAccept-Encoding: gzip, br\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(answer.find("Content-Encoding"), std::string::npos);
  EXPECT_TRUE(answer.ends_with("\r\n\r\n" + std::string(5000, 'a'))) << answer.substr(0, 300);
}

TEST(HttpServer, ManyRequestsShareAConnection) {
  Serving serving(echo);
  std::string wanted;
  for (int i = 0; i < 20; ++i) wanted += "GET /" + std::to_string(i) + " HTTP/1.1\r\n\r\n";
  const std::string answer = serving.raw(wanted + "GET /last HTTP/1.1\r\nConnection: close\r\n\r\n");
  std::size_t at = 0;
  for (int i = 0; i < 20; ++i) {
    at = answer.find("GET /" + std::to_string(i), at);
    ASSERT_NE(at, std::string::npos) << i;
  }
  EXPECT_TRUE(answer.ends_with("GET /last"));
}

TEST(HttpServer, RangesAreNotAnswered) {
  Serving serving([](const HttpRequest&) {
    return HttpAnswer{200, {}, "text/plain", std::string(1000, 'a')};
  });
  std::string ranges = "bytes=0-";
  for (int i = 0; i < 1000; ++i) ranges += ",0-";
  const std::string answer =
      serving.raw("GET / HTTP/1.1\r\nRange: " + ranges + "\r\nConnection: close\r\n\r\n");
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 200"));
  EXPECT_TRUE(answer.ends_with("\r\n\r\n" + std::string(1000, 'a')));
}

TEST(HttpServer, NothingIsHiddenInALineThatEndsElsewhereForOthers) {
  std::atomic<int> requests{0};
  Serving serving([&](const HttpRequest& request) {
    ++requests;
    return echo(request);
  });
  for (const std::string hidden : {"Range: bytes=0-60000", "Content-Length: 5", "Expect: 100-continue"}) {
    for (const std::string end : {"\n", "\r"}) {
      const std::string answer = serving.raw("GET / HTTP/1.1\r\nX: a" + end + hidden + "\r\n\r\n");
      EXPECT_TRUE(answer.starts_with("HTTP/1.1 400 ")) << answer;
      EXPECT_TRUE(answer.ends_with("\r\n\r\n")) << answer;
    }
  }
  EXPECT_EQ(requests, 0);
}

TEST(HttpServer, ABodyIsNoNextRequest) {
  std::atomic<int> requests{0};
  Serving serving([&](const HttpRequest& request) {
    ++requests;
    return echo(request);
  });
  const std::string inner = "GET /inner HTTP/1.1\r\n\r\n";
  for (const std::string& body :
       {"Content-Length: " + std::to_string(inner.size()), std::string("Transfer-Encoding: x")}) {
    const std::string answer = serving.raw("GET /outer HTTP/1.1\r\n" + body + "\r\n\r\n" + inner);
    EXPECT_TRUE(answer.ends_with("GET /outer")) << answer;
    EXPECT_NE(answer.find("Connection: close"), std::string::npos);
  }
  EXPECT_EQ(requests, 2);
}

TEST(HttpServer, MalformedAndOversizedRequestsAreRefused) {
  std::atomic<int> requests{0};
  Serving serving([&](const HttpRequest& request) {
    ++requests;
    return echo(request);
  });
  EXPECT_TRUE(serving.raw("GET /\r\n\r\n").starts_with("HTTP/1.1 400"));
  EXPECT_TRUE(serving.raw(std::string("\0\x01\xff / HTTP/1.1\r\n\r\n", 18)).starts_with("HTTP/1.1 400"));
  EXPECT_TRUE(
      serving.raw("GET /" + std::string(10000, 'a') + " HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 414"));
  const auto large = static_cast<std::size_t>(bounds::kMaxHttpHeadBytes);
  EXPECT_TRUE(serving.raw("GET / HTTP/1.1\r\nX: " + std::string(large, 'a')).starts_with("HTTP/1.1 431"));
  std::string fields;
  while (fields.size() < large) fields += "a: b\r\n";
  EXPECT_TRUE(serving.raw("GET / HTTP/1.1\r\n" + fields + "\r\n").starts_with("HTTP/1.1 431"));
  EXPECT_EQ(requests, 0);
  EXPECT_TRUE(serving.raw("GET / HTTP/1.1\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 200"));
}

TEST(HttpServer, AHeadThatDoesNotComeIsNotWaitedForWithoutEnd) {
  Serving serving(echo);
  const Clock::time_point start = Clock::now();
  // A byte each 100 ms keeps no connection alive.
  EXPECT_TRUE(
      serving.trickle("GET / HTTP/1.1\r\nX: ", std::chrono::milliseconds(100)).starts_with("HTTP/1.1 408"));
  EXPECT_GE(Clock::now() - start, bounds::kMaxHttpHeadTime);
  EXPECT_LT(Clock::now() - start, bounds::kMaxHttpHeadTime * 3);
}

TEST(HttpServer, IdleConnectionsMakePlace) {
  Serving serving(echo);
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < bounds::kHttpThreads; ++i) {
    idle.push_back(std::make_unique<RawClient>(serving.port()));
    idle.back()->send("GET / HTTP/1.1\r\n\r\n");
    EXPECT_NE(idle.back()->receive(), "");
  }
  const Clock::time_point start = Clock::now();
  auto got = serving.client().Get("/a");
  ASSERT_TRUE(got);
  EXPECT_LT(Clock::now() - start, bounds::kMaxHttpIdleTime);
}

TEST(HttpServer, MoreClientsThanThreadsAreAllAnswered) {
  Serving serving([](const HttpRequest& request) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return echo(request);
  });
  std::atomic<int> answered{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 100; ++i) {
    clients.emplace_back([&] {
      auto client = serving.client();
      for (int k = 0; k < 5; ++k) {
        auto got = client.Get("/" + std::to_string(k));
        if (got && got->body == "GET /" + std::to_string(k)) ++answered;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(answered, 500);
}

TEST(HttpServer, AFailingHandlerIsAnInternalError) {
  Serving serving([](const HttpRequest&) -> HttpAnswer { throw std::bad_alloc(); });
  auto got = serving.client().Get("/");
  ASSERT_TRUE(got);
  EXPECT_EQ(got->status, 500);
  EXPECT_EQ(got->body, "");
}

TEST(HttpServer, StoppingEndsIdleClientsAndLetsAnswersThrough) {
  std::atomic<bool> asked{false};
  const std::string large(8 << 20, 'x');
  auto serving = std::make_unique<Serving>([&](const HttpRequest&) {
    asked = true;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    return HttpAnswer{200, {}, "text/plain", large};
  });
  RawClient idle(serving->port());
  std::string body;
  std::thread client([&] {
    auto got = serving->client().Get("/");
    if (got) body = got->body;
  });
  while (!asked) std::this_thread::yield();
  const Clock::time_point start = Clock::now();
  serving->stop();
  EXPECT_LT(Clock::now() - start, bounds::kMaxHttpStopTime);
  client.join();
  EXPECT_EQ(body, large);
  EXPECT_EQ(idle.receive(), "");
}

TEST(HttpServer, AClientThatTakesNothingDoesNotHinderTheEnd) {
  std::atomic<bool> asked{false};
  auto serving = std::make_unique<Serving>([&](const HttpRequest&) {
    asked = true;
    return HttpAnswer{200, {}, "text/plain", std::string(64 << 20, 'x')};
  });
  RawClient client(serving->port());
  client.send("GET / HTTP/1.1\r\n\r\n");
  while (!asked) std::this_thread::yield();
  const Clock::time_point start = Clock::now();
  serving->stop();
  EXPECT_LT(Clock::now() - start, bounds::kMaxHttpStopTime * 3);
}

}  // namespace
}  // namespace fieldprint::server
