#include <string_view>

#include "ledger/checkpoint.h"
#include "ledger/signed_note.h"

// Whatever parses must format to the same bytes, so that no two notes mean the same.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint::ledger;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (auto note = parse_note(text)) {
    CHECK(format_note(*note) == text);
    if (auto checkpoint = parse_checkpoint(note->text)) CHECK(*format_checkpoint(*checkpoint) == note->text);
  }
  if (auto checkpoint = parse_checkpoint(text)) CHECK(*format_checkpoint(*checkpoint) == text);
  if (auto key = VerifierKey::parse(text)) {
    CHECK(key->text() == text);
    (void)open_note(text, {&*key, 1});
  }
  if (auto key = SignerKey::parse(text)) CHECK(key->secret_text() == text);
  return 0;
}
