#include "store/postgres.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <thread>

#include "store/open_ledger.h"
#include "store/stores_testing.h"

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

TEST(Postgres, AServerThatSaysNothingIsGivenUp) {
  const int silent = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ASSERT_GE(silent, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* any = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(::bind(silent, any, size), 0);
  ASSERT_EQ(::listen(silent, 1), 0);
  ASSERT_EQ(::getsockname(silent, any, &size), 0);
  std::promise<void> given_up;
  // Ends the connection late, so that waiting without end fails instead of hanging.
  std::thread server([&, done = given_up.get_future()] {
    done.wait_for(std::chrono::seconds(25));
    ::close(silent);
  });
  const auto begin = std::chrono::steady_clock::now();
  const auto connection =
      Connection::open(fmt::format("postgresql://127.0.0.1:{}/db", ntohs(address.sin_port)));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  given_up.set_value();
  server.join();
  ASSERT_FALSE(connection.ok());
  EXPECT_EQ(connection.error().kind, ErrorKind::kEnvironment);
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

TEST(Postgres, ANumberThatADamagedRowLacksIsTheDatabasesDamage) {
  std::string why;
  TemporaryPostgres* server = test_postgres(why);
  if (server == nullptr) GTEST_SKIP() << why;
  auto connection = *Connection::open(server->url("lacking"));
  const auto rows = connection->query("SELECT 1::bigint UNION ALL SELECT NULL::bigint");
  ASSERT_FALSE(rows.ok());
  EXPECT_EQ(rows.error().kind, ErrorKind::kEnvironment);
  EXPECT_NE(rows.error().message.find("damaged"), std::string::npos);
}

TEST(Postgres, GrowthIsAnnouncedToThoseWhoListenAndToNobodyElse) {
  std::string why;
  TemporaryPostgres* server = test_postgres(why);
  if (server == nullptr) GTEST_SKIP() << why;
  const std::string url = server->url("announced");
  auto store = open_ledger(url, Access::kAppend);
  ASSERT_TRUE(store.ok()) << store.error().message;
  auto listener = *Connection::open(url);
  auto deaf = *Connection::open(url);
  ASSERT_TRUE(listener->listen().ok());
  EXPECT_FALSE(*listener->heard());
  ASSERT_TRUE((*store)->append(std::vector<Bytes>{leaf_of(0)}).ok());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  bool heard = false;
  while (!heard && std::chrono::steady_clock::now() < deadline) heard = *listener->heard();
  EXPECT_TRUE(heard);
  EXPECT_FALSE(*listener->heard());
  EXPECT_FALSE(*deaf->heard());
}

}  // namespace
}  // namespace fieldprint::store::postgres
