#include "server/request_head.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace fieldprint::server {
namespace {

TEST(RequestHead, HeadsAreTakenOneByOne) {
  std::string received = "\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c";
  auto head = take_head(received);
  ASSERT_TRUE(head.has_value());
  EXPECT_EQ(head->text, "GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_FALSE(head->has_body);
  head = take_head(received);
  ASSERT_TRUE(head.has_value());
  EXPECT_EQ(head->text, "GET /b HTTP/1.1\r\n\r\n");
  EXPECT_FALSE(take_head(received).has_value());
  EXPECT_EQ(received, "GET /c");
}

TEST(RequestHead, FieldsThatNoAnswerHeedsAreLeftOut) {
  std::string received =
      "GET /a HTTP/1.1\r\nRange: bytes=0-1\r\nrange : bytes=0-1\r\nIF-RANGE: x\r\nExpect: "
      "100-continue\r\nRanges: 1\r\n\r\n";
  EXPECT_EQ(take_head(received)->text, "GET /a HTTP/1.1\r\nRanges: 1\r\n\r\n");
}

TEST(RequestHead, LinesThatAnotherParserWouldEndElsewhereAreMalformed) {
  for (const std::string& field :
       {std::string("X: a\nRange: bytes=0-"), std::string("X: a\rRange: bytes=0-"), std::string("\nX: a"),
        std::string("X: a\n"), std::string("X: a\r"), std::string("X: a\0b", 6)}) {
    std::string received = "GET / HTTP/1.1\r\n" + field + "\r\n\r\nGET /";
    const auto head = take_head(received);
    ASSERT_TRUE(head.has_value());
    EXPECT_TRUE(head->malformed) << field;
    EXPECT_EQ(head->text, "");
    EXPECT_EQ(received, "GET /");
  }
}

TEST(RequestHead, ClientsSayThatTheyWantNoFurtherAnswer) {
  for (const char* value : {"close", "Close", " keep-alive , CLOSE"}) {
    std::string received = fmt::format("GET / HTTP/1.1\r\nconnection:{}\r\n\r\n", value);
    EXPECT_TRUE(take_head(received)->closes) << value;
  }
  std::string received = "GET / HTTP/1.1\r\nConnection: keep-alive, closed\r\nX: close\r\n\r\n";
  EXPECT_FALSE(take_head(received)->closes);
}

TEST(RequestHead, BodiesAreNoticed) {
  for (const std::string field : {"Content-Length: 5", "content-length : 0", "TRANSFER-ENCODING: chunked"}) {
    std::string received = "GET / HTTP/1.1\r\n" + field + "\r\n\r\nGET /";
    EXPECT_TRUE(take_head(received)->has_body) << field;
    EXPECT_EQ(received, "GET /");
  }
}

TEST(RequestHead, GzipIsAcceptedWhereTheClientSaysSo) {
  for (const char* value :
       {"gzip", "GZIP", "deflate, gzip;q=1.0, *;q=0.5", "identity;q=0, gzip ; q=0.001", "*", "x-gzip"})
    EXPECT_TRUE(accepts_gzip(value)) << value;
  for (const char* value :
       {"", "identity", "br", "gzip;q=0", "gzip; Q=0.000", "*;q=0", "gzip;q=0, *", "gzipped", "*, gzip;q=0"})
    EXPECT_FALSE(accepts_gzip(value)) << value;
}

TEST(RequestHead, TagsAreFoundInLists) {
  for (const char* value : {"\"a\"", "W/\"a\"", "\"b\", \"a\"", " \"a\" ,\"c\"", "*"})
    EXPECT_TRUE(names_tag(value, "\"a\"")) << value;
  for (const char* value : {"", "a", "\"A\"", "\"ab\"", "\"b\",\"c\"", "w/\"a\""})
    EXPECT_FALSE(names_tag(value, "\"a\"")) << value;
}

}  // namespace
}  // namespace fieldprint::server
