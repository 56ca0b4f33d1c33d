#include "tokenizer/vocabulary.h"

#include <bit>
#include <cstring>

#include "base/bounds.h"
#include "tokenizer/pre_tokenizer.h"

namespace fieldprint::tokenizer {
namespace {

constexpr std::string_view kMagic = "FPVO";
constexpr std::uint32_t kVersion = 1;
constexpr std::uint32_t kNoToken = 0xffffffff;

class Writer {
 public:
  void u8(std::uint8_t value) { out_.push_back(static_cast<char>(value)); }
  void u32(std::uint32_t value) {
    for (int shift = 0; shift < 32; shift += 8) u8(static_cast<std::uint8_t>(value >> shift));
  }
  void raw(std::string_view bytes) { out_.append(bytes); }
  void text(std::string_view bytes) {
    u32(static_cast<std::uint32_t>(bytes.size()));
    raw(bytes);
  }
  void id(const std::optional<std::int32_t>& token) {
    u32(token ? static_cast<std::uint32_t>(*token) : kNoToken);
  }
  void arena(const TextArena& texts) {
    u32(static_cast<std::uint32_t>(texts.size()));
    for (std::size_t i = 0; i < texts.size(); ++i) text(texts[i]);
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

/// Reads until the first thing that does not fit; from then on every read gives zero and ok() is false.
class Reader {
 public:
  explicit Reader(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  bool ok() const { return ok_; }
  std::size_t remaining() const { return bytes_.size() - at_; }
  void fail() { ok_ = false; }

  std::uint8_t u8() {
    const std::string_view byte = raw(1);
    return byte.empty() ? std::uint8_t{0} : static_cast<std::uint8_t>(byte[0]);
  }
  std::uint32_t u32() {
    const std::string_view four = raw(4);
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < four.size(); ++i) {
      value |= static_cast<std::uint32_t>(static_cast<std::uint8_t>(four[i])) << (8 * i);
    }
    return value;
  }
  std::string_view raw(std::size_t count) {
    if (!ok_ || count > remaining()) {
      ok_ = false;
      return {};
    }
    const std::string_view view(reinterpret_cast<const char*>(bytes_.data()) + at_, count);
    at_ += count;
    return view;
  }
  std::string_view text() {
    const std::uint32_t size = u32();
    if (size > bounds::kMaxStringBytes) fail();
    return raw(size);
  }
  std::optional<std::int32_t> id(std::size_t tokens) {
    const std::uint32_t value = u32();
    if (value == kNoToken) return std::nullopt;
    if (value >= tokens) fail();
    return static_cast<std::int32_t>(value);
  }
  bool flag() {
    const std::uint8_t value = u8();
    if (value > 1) fail();
    return value == 1;
  }
  /// A count of items that take at least item_bytes each.
  std::size_t count(std::int64_t limit, std::size_t item_bytes) {
    const std::uint32_t value = u32();
    if (value > limit || value > remaining() / item_bytes) fail();
    return ok_ ? value : 0;
  }
  TextArena arena(std::int64_t limit) {
    const std::size_t size = count(limit, 4);
    TextArena texts;
    texts.reserve(size, ok_ ? remaining() - 4 * size : 0);
    for (std::size_t i = 0; i < size && ok_; ++i) {
      if (!texts.push_back(text())) fail();
    }
    return texts;
  }

 private:
  std::span<const std::uint8_t> bytes_;
  std::size_t at_ = 0;
  bool ok_ = true;
};

std::optional<TokenType> token_type(std::uint8_t value) {
  if (value < 1 || value > 6) return std::nullopt;
  return static_cast<TokenType>(value);
}

void read_body(Reader& in, Vocabulary& out) {
  out.add_bos = in.flag();
  out.add_eos = in.flag();
  out.add_space_prefix = in.flag();
  out.architecture = in.text();
  out.pre_tokenizer = in.text();
  out.chat_template = in.text();
  out.tokens = in.arena(bounds::kMaxVocab);
  const std::size_t tokens = out.tokens.size();
  for (const char value : in.raw(tokens)) {
    const auto type = token_type(static_cast<std::uint8_t>(value));
    if (!type) return in.fail();
    out.types.push_back(*type);
  }
  const std::size_t scores = in.count(bounds::kMaxVocab, 4);
  if (scores != 0 && scores != tokens) return in.fail();
  out.scores.reserve(scores);
  for (std::size_t i = 0; i < scores; ++i) out.scores.push_back(std::bit_cast<float>(in.u32()));
  out.merges = in.arena(bounds::kMaxMerges);
  for (auto* id : {&out.bos, &out.eos, &out.eot, &out.unk, &out.pad}) *id = in.id(tokens);
}

}  // namespace

bool TextArena::push_back(std::string_view text) {
  if (bytes_.size() + text.size() > static_cast<std::size_t>(bounds::kMaxTextBytes)) return false;
  bytes_.append(text);
  ends_.push_back(static_cast<std::uint32_t>(bytes_.size()));
  return true;
}

void TextArena::reserve(std::size_t texts, std::size_t bytes) {
  ends_.reserve(texts);
  bytes_.reserve(std::min(bytes, texts * 16));
}

VocabularyDefaults defaults_for(Kind kind, std::string_view pre_tokenizer) {
  if (kind == Kind::kSentencePiece) return {.add_bos = true, .add_space_prefix = true};
  return {.add_bos = PreTokenizer::expects_bos(pre_tokenizer), .add_space_prefix = false};
}

std::string serialize(const Vocabulary& vocabulary) {
  Writer out;
  out.raw(kMagic);
  out.u32(kVersion);
  out.u8(static_cast<std::uint8_t>(vocabulary.kind));
  out.u8(vocabulary.add_bos);
  out.u8(vocabulary.add_eos);
  out.u8(vocabulary.add_space_prefix);
  out.text(vocabulary.architecture);
  out.text(vocabulary.pre_tokenizer);
  out.text(vocabulary.chat_template);
  out.arena(vocabulary.tokens);
  for (const TokenType type : vocabulary.types) out.u8(static_cast<std::uint8_t>(type));
  out.u32(static_cast<std::uint32_t>(vocabulary.scores.size()));
  for (const float score : vocabulary.scores) out.u32(std::bit_cast<std::uint32_t>(score));
  out.arena(vocabulary.merges);
  for (const auto& id : {vocabulary.bos, vocabulary.eos, vocabulary.eot, vocabulary.unk, vocabulary.pad}) {
    out.id(id);
  }
  return out.take();
}

Result<Vocabulary> parse(std::span<const std::uint8_t> bytes) {
  Reader in(bytes);
  if (in.raw(kMagic.size()) != kMagic) return caller_error("vocabulary: wrong magic; import the model again");
  const std::uint32_t version = in.u32();
  if (in.ok() && version != kVersion) {
    return caller_error(
        fmt::format("vocabulary: version {} is not {}; import the model again", version, kVersion));
  }
  Vocabulary out;
  const std::uint8_t kind = in.u8();
  if (kind != static_cast<std::uint8_t>(Kind::kBpe) &&
      kind != static_cast<std::uint8_t>(Kind::kSentencePiece))
    in.fail();
  out.kind = static_cast<Kind>(kind);
  read_body(in, out);
  if (!in.ok()) return caller_error("vocabulary: truncated or damaged; import the model again");
  if (in.remaining() != 0) {
    return caller_error(
        fmt::format("vocabulary: {} bytes left over; import the model again", in.remaining()));
  }
  return out;
}

}  // namespace fieldprint::tokenizer
