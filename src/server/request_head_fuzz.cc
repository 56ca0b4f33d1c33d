#include <cstdint>

#include "base/check.h"
#include "server/request_head.h"

// Heads are taken off until there is no more, and each ends with the one empty line in it.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint::server;
  const std::string text(reinterpret_cast<const char*>(data), size);
  std::string received = text;
  while (true) {
    const std::size_t before = received.size();
    const auto head = take_head(received);
    if (!head) break;
    CHECK(received.size() + 4 <= before && head->text.size() <= before);
    CHECK(head->text.find("\r\n\r\n") == head->text.size() - 4);
  }
  CHECK(received.find("\r\n\r\n") == std::string::npos && text.ends_with(received));
  (void)accepts_gzip(text);
  (void)names_tag(text, "\"a\"");
  return 0;
}
