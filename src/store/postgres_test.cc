#include "store/postgres.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <thread>

namespace fieldprint::store::postgres {
namespace {

TEST(Postgres, AMalformedUrlIsRefusedWithoutSayingThePassword) {
  for (const char* url : {
           "postgresql://user:secret%ss@127.0.0.1/db",
           "postgresql://user:secret/word@127.0.0.1/db",
           "postgresql://127.0.0.1:1/secret@127.0.0.1/db",
           "postgresql://user:pass@secret@127.0.0.1/db",
           "postgresql://user:pass?secret/word@127.0.0.1/db",
           "postgresql://127.0.0.1:secret/db",
           "postgresql://127.0.0.1:70000/secret",
       }) {
    const auto connection = Connection::open(url);
    ASSERT_FALSE(connection.ok()) << url;
    EXPECT_EQ(connection.error().kind, ErrorKind::kCaller) << url << ": " << connection.error().message;
    EXPECT_EQ(connection.error().message.find("secret"), std::string::npos) << connection.error().message;
    EXPECT_NE(connection.error().message.find("percent-encode"), std::string::npos)
        << connection.error().message;
  }
}

TEST(Postgres, AnUnusualUrlIsNotRefused) {
  // Nobody listens there.
  for (const char* url : {
           "postgresql://user:p%40s%2Fs@127.0.0.1:1/db",
           "postgresql://user@127.0.0.1:1,127.0.0.1:2/db?sslmode=disable",
           "postgresql:///db?host=@fieldprint-no-such-socket&user=a",
       }) {
    const auto connection = Connection::open(url);
    ASSERT_FALSE(connection.ok()) << url;
    EXPECT_EQ(connection.error().kind, ErrorKind::kEnvironment) << connection.error().message;
  }
}

}  // namespace
}  // namespace fieldprint::store::postgres
