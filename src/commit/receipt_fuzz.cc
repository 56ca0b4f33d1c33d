#include <algorithm>

#include "commit/envelope.h"
#include "commit/receipt.h"

// Whatever decodes is in the one encoding, and can be checked and shown.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint::commit;
  const std::span bytes(data, size);
  auto receipt = decode(bytes);
  if (!receipt) return 0;
  const auto again = encode(*receipt);
  CHECK(again.ok() && std::equal(again->begin(), again->end(), bytes.begin(), bytes.end()));
  CHECK(to_json(*receipt).ok());
  CHECK(!check_envelope(*receipt).empty());
  return 0;
}
