#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "tokenizer/chat_template.h"
#include "tokenizer/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint::tokenizer;
  auto vocabulary = parse({data, size});
  if (!vocabulary) return 0;
  const std::string again = serialize(*vocabulary);
  CHECK(again == std::string_view(reinterpret_cast<const char*>(data), size));

  const auto tokenizer = Tokenizer::make(std::move(vocabulary).value());
  if (!tokenizer) return 0;
  const auto ids =
      (*tokenizer)->encode("hello  world\n<s>\xff\u00e9 12", {.add_bos = true, .parse_special = true});
  static_cast<void>((*tokenizer)->decode(ids, true));
  const Message message{"user", "hello"};
  static_cast<void>(render(**tokenizer, "anchor", {&message, 1}, true).ok());
  return 0;
}
