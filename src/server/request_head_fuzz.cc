#include <cctype>
#include <cstdint>
#include <sstream>
#include <string>

#include "base/check.h"
#include "server/request_head.h"

namespace {

using namespace fieldprint::server;

// A parser that ends lines at LF alone finds no field that was to be left out, and no body that was not
// noticed.
void check_seen_alike(const RequestHead& head) {
  std::istringstream lines(head.text);
  std::string line;
  std::getline(lines, line);
  while (std::getline(lines, line)) {
    std::string name = line.substr(0, line.find(':'));
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    CHECK(name != "range" && name != "if-range" && name != "expect");
    if (name == "content-length" || name == "transfer-encoding") CHECK(head.has_body);
  }
}

}  // namespace

// Heads are taken off until there is no more, and each ends with the one empty line in it.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  std::string received = text;
  while (true) {
    const std::size_t before = received.size();
    const auto head = take_head(received);
    if (!head) break;
    CHECK(received.size() + 4 <= before && head->text.size() <= before);
    if (head->malformed) continue;
    CHECK(head->text.find("\r\n\r\n") == head->text.size() - 4);
    check_seen_alike(*head);
  }
  CHECK(received.find("\r\n\r\n") == std::string::npos && text.ends_with(received));
  (void)accepts_gzip(text);
  (void)names_tag(text, "\"a\"");
  return 0;
}
