#include <algorithm>

#include "commit/segment.h"

namespace {

using namespace fieldprint::commit;

template <class T>
void must_be_its_encoding(const fieldprint::Result<T>& record, std::span<const std::uint8_t> leaf,
                          std::string_view kind) {
  if (!record) return;
  const auto again = encode(*record);
  CHECK(again.ok() && std::equal(again->begin(), again->end(), leaf.begin(), leaf.end()));
  CHECK(record_kind(leaf) == kind);
}

}  // namespace

// Whatever decodes is in the one encoding, and is of one kind.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span leaf(data, size);
  must_be_its_encoding(decode_open(leaf), leaf, "open");
  must_be_its_encoding(decode_segment(leaf), leaf, "segment");
  must_be_its_encoding(decode_verdict(leaf), leaf, "verdict");
  static_cast<void>(record_kind(leaf));
  return 0;
}
