#include <cstddef>
#include <cstdint>
#include <string>

#include "base/check.h"
#include "tokenizer/small_vocabularies.h"
#include "tokenizer/tokenizer.h"

namespace fieldprint::tokenizer {
namespace {

std::unique_ptr<Tokenizer> made(Vocabulary vocabulary, const char* pre_tokenizer, bool space_prefix) {
  vocabulary.pre_tokenizer = pre_tokenizer;
  vocabulary.add_space_prefix = space_prefix;
  return Tokenizer::make(std::move(vocabulary)).value();
}

/// A U+2581 in the text reads back as a space for SentencePiece, by definition.
std::string expected_back(const Tokenizer& tokenizer, std::string text) {
  if (tokenizer.vocabulary().kind == Kind::kBpe) return text;
  for (std::size_t at = 0; (at = text.find("\u2581", at)) != std::string::npos; ++at)
    text.replace(at, 3, " ");
  return text;
}

void check(const Tokenizer& tokenizer, const std::string& text) {
  const auto ids = tokenizer.encode(text);
  CHECK(tokenizer.decode(ids) == expected_back(tokenizer, text));
  for (const std::int32_t id : ids) CHECK(!tokenizer.is_control(id));
  StreamDecoder stream(tokenizer);
  std::string streamed;
  std::string joined;
  for (const std::int32_t id : ids) {
    streamed += stream.push(id);
    joined += tokenizer.token_bytes(id);
  }
  CHECK(streamed + stream.finish() == joined);
  // With control tokens in it, the rendered text is the same again.
  const auto special = tokenizer.encode(text, {.add_bos = false, .parse_special = true});
  CHECK(tokenizer.decode(special, true) == expected_back(tokenizer, text));
}

}  // namespace
}  // namespace fieldprint::tokenizer

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace fieldprint::tokenizer;
  static const std::unique_ptr<Tokenizer> kTokenizers[] = {
      made(small::byte_level(), "smollm", false),  made(small::byte_level(), "llama-bpe", false),
      made(small::byte_level(), "default", false), made(small::byte_level(), "gpt-4o", false),
      made(small::sentencepiece(), "", false),     made(small::sentencepiece(), "", true),
  };
  const std::string text(reinterpret_cast<const char*>(data), size);
  for (const auto& tokenizer : kTokenizers) check(*tokenizer, text);
  return 0;
}
