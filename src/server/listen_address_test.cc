#include "server/listen_address.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "base/file.h"

namespace fieldprint::server {
namespace {

TEST(ListenAddress, FormsAreReadAndWrittenAlike) {
  const std::pair<const char*, ListenAddress> known[] = {{"127.0.0.1:8470", {"127.0.0.1", 8470}},
                                                         {"localhost:0", {"localhost", 0}},
                                                         {"[::1]:65535", {"::1", 65535}},
                                                         {"a-b.example_c:1", {"a-b.example_c", 1}}};
  for (const auto& [text, address] : known) {
    EXPECT_EQ(parse_listen_address(text), address) << text;
    EXPECT_EQ(to_string(address), text);
  }
}

TEST(ListenAddress, OtherFormsAreRefused) {
  for (const char* text : {"",
                           ":",
                           "8470",
                           "127.0.0.1",
                           "127.0.0.1:",
                           ":8470",
                           "localhost:65536",
                           "localhost:-1",
                           "localhost:+1",
                           "localhost:080",
                           "localhost:8 ",
                           "local host:80",
                           "::1:80",
                           "[::1]",
                           "[::1]:",
                           "[]:80",
                           "[localhost]:80",
                           "http://localhost:80",
                           "localhost:80/",
                           "a:b:1"}) {
    EXPECT_FALSE(parse_listen_address(text).has_value()) << text;
  }
  EXPECT_FALSE(parse_listen_address(std::string(254, 'a') + ":1").has_value());
}

TEST(ListenAddress, APortIsChosenAndThenTakenByOneOnly) {
  auto first = listen_on({"127.0.0.1", 0});
  ASSERT_TRUE(first.ok()) << first.error().message;
  const Descriptor owner(first->socket);
  EXPECT_NE(first->address.port, 0);
  EXPECT_EQ(first->address.host, "127.0.0.1");
  EXPECT_TRUE(first->is_loopback);
  auto second = listen_on(first->address);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().kind, ErrorKind::kEnvironment);
  EXPECT_NE(second.error().message.find("Address already in use"), std::string::npos)
      << second.error().message;
}

TEST(ListenAddress, OnlyThisMachinesAddressesAreLoopback) {
  for (const auto& [host, loopback] : {std::pair{"127.1.2.3", true}, std::pair{"0.0.0.0", false}}) {
    auto listening = listen_on({host, 0});
    ASSERT_TRUE(listening.ok()) << listening.error().message;
    const Descriptor owner(listening->socket);
    EXPECT_EQ(listening->is_loopback, loopback) << host;
  }
}

TEST(ListenAddress, AnUnknownHostIsTheCallersError) {
  auto listening = listen_on({"no-such-host.invalid", 0});
  ASSERT_FALSE(listening.ok());
  EXPECT_EQ(listening.error().kind, ErrorKind::kCaller);
}

}  // namespace
}  // namespace fieldprint::server
