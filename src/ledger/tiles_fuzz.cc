#include <string_view>

#include "ledger/tiles.h"

// Whatever is accepted must have no second form.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint::ledger;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (auto tile = parse_tile_path(text)) CHECK(tile_path(*tile) == text);
  if (auto resource = parse_resource_path(text)) CHECK(resource_path(*resource) == text);
  if (size == 0) return 0;
  const std::span<const std::uint8_t> bundle(data + 1, size - 1);
  if (auto entries = decode_entries(bundle, data[0] + 1)) {
    const auto again = encode_entries(*entries);
    CHECK(again.ok() && std::equal(again->begin(), again->end(), bundle.begin(), bundle.end()));
  }
  return 0;
}
