#include <cstdint>

#include "base/check.h"
#include "server/listen_address.h"

// Whatever is accepted has no second form.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint::server;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto address = parse_listen_address(text)) CHECK(to_string(*address) == text);
  return 0;
}
