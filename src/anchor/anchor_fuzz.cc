#include <algorithm>

#include "anchor/anchor.h"

// What parses is canonical; what can be made from any text parses back to itself.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint::anchor;
  const std::span bytes(data, size);
  if (auto anchor = Anchor::parse(bytes)) {
    const auto again = anchor->canonical_bytes();
    CHECK(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()));
  }
  if (auto anchor = Anchor::make(AnchorType::kPolicy, {}, {reinterpret_cast<const char*>(data), size})) {
    CHECK(*Anchor::parse(anchor->canonical_bytes()) == *anchor);
  }
  return 0;
}
