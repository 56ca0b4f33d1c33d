#include "ledger/signed_note.h"

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "base/base64.h"
#include "base/bounds.h"
#include "base/sha256.h"
#include "base/utf8.h"
#include "ledger/cosignature.h"

namespace fieldprint::ledger {
namespace {

constexpr std::string_view kSecretPrefix = "PRIVATE+KEY+";
constexpr std::string_view kSignaturePrefix = "\xe2\x80\x94 ";  // em dash, space

using Bytes = std::vector<std::uint8_t>;

std::span<const std::uint8_t> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

// Characters with the Unicode property White_Space, in UTF-8.
bool has_unicode_space(std::string_view text) {
  static constexpr std::string_view kSpaces[] = {
      "\t",           "\n",           "\v",           "\f",           "\r",           " ",
      "\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81", "\xe2\x80\x82",
      "\xe2\x80\x83", "\xe2\x80\x84", "\xe2\x80\x85", "\xe2\x80\x86", "\xe2\x80\x87", "\xe2\x80\x88",
      "\xe2\x80\x89", "\xe2\x80\x8a", "\xe2\x80\xa8", "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f",
      "\xe3\x80\x80"};
  return std::any_of(std::begin(kSpaces), std::end(kSpaces),
                     [text](std::string_view space) { return text.find(space) != std::string_view::npos; });
}

bool has_control_other_than_newline(std::string_view text) {
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x20 && c != '\n'; });
}

bool valid_key_name(std::string_view name) {
  return !name.empty() && std::cmp_less_equal(name.size(), bounds::kMaxKeyNameBytes) && valid_utf8(name) &&
         !has_unicode_space(name) && name.find('+') == std::string_view::npos &&
         !has_control_other_than_newline(name);
}

bool valid_note_text(std::string_view text) {
  return !text.empty() && text.back() == '\n' && valid_utf8(text) && !has_control_other_than_newline(text);
}

std::uint32_t big_endian(std::span<const std::uint8_t, 4> bytes) {
  return static_cast<std::uint32_t>(bytes[0]) << 24 | static_cast<std::uint32_t>(bytes[1]) << 16 |
         static_cast<std::uint32_t>(bytes[2]) << 8 | bytes[3];
}

using TypedKey = std::array<std::uint8_t, 33>;

TypedKey with_type(KeyType type, std::span<const std::uint8_t, 32> key) {
  TypedKey bytes = {static_cast<std::uint8_t>(type)};
  std::copy(key.begin(), key.end(), bytes.begin() + 1);
  return bytes;
}

// The 32 key bytes of `name+id+base64(type || key)`, and the name; the caller checks the ID.
struct KeyText {
  std::string name;
  std::uint8_t type = 0;
  std::array<std::uint8_t, 32> key{};
};

std::optional<KeyText> split_key_text(std::string_view text) {
  const std::size_t first = text.find('+');
  if (first == std::string_view::npos) return std::nullopt;
  const std::size_t second = text.find('+', first + 1);
  if (second == std::string_view::npos) return std::nullopt;
  auto bytes = base64_decode(text.substr(second + 1));
  if (!bytes || bytes->size() != 33) return std::nullopt;
  KeyText out;
  out.type = bytes->front();
  out.name = std::string(text.substr(0, first));
  std::copy(bytes->begin() + 1, bytes->end(), out.key.begin());
  wipe(*bytes);
  return out;
}

Error malformed(std::string_view what) {
  return caller_error(fmt::format("malformed signed note: {}", what));
}

Result<NoteSignature> parse_signature_line(std::string_view line) {
  if (!line.starts_with(kSignaturePrefix)) {
    return malformed("a line below the last blank line does not start with an em dash and a space");
  }
  line.remove_prefix(kSignaturePrefix.size());
  const std::size_t space = line.find(' ');
  if (space == std::string_view::npos) return malformed("a signature line has no signature");
  NoteSignature signature;
  signature.key_name = std::string(line.substr(0, space));
  if (!valid_key_name(signature.key_name)) {
    return malformed("a key name is empty, too long or holds a space or a plus sign");
  }
  auto bytes = base64_decode(line.substr(space + 1));
  if (!bytes || bytes->size() < 5) return malformed("a signature is not base64 of a key ID and a signature");
  signature.key_id = big_endian(std::span(*bytes).first<4>());
  signature.bytes.assign(bytes->begin() + 4, bytes->end());
  return signature;
}

}  // namespace

Result<VerifierKey> VerifierKey::make(std::string name, const PublicKey& key, KeyType type) {
  if (!valid_key_name(name)) {
    return caller_error(
        fmt::format("a key name must be UTF-8 of 1 to {} bytes without spaces, control characters and plus "
                    "signs, such as "
                    "example.com/ledger",
                    bounds::kMaxKeyNameBytes));
  }
  VerifierKey out;
  const Digest hash = Sha256().update(name).update("\n").update(with_type(type, key)).finish();
  out.name_ = std::move(name);
  out.type_ = type;
  out.id_ = big_endian(std::span(hash).first<4>());
  out.key_ = key;
  return out;
}

Result<VerifierKey> VerifierKey::parse(std::string_view text) {
  const auto parts = split_key_text(text);
  const bool known = parts && (parts->type == static_cast<std::uint8_t>(KeyType::kEd25519) ||
                               parts->type == static_cast<std::uint8_t>(KeyType::kCosignature));
  if (!known) {
    return caller_error(
        "malformed verifier key: expected name+id+base64 of 1 (Ed25519) or 4 (cosignature/v1) and the public "
        "key");
  }
  auto key = make(parts->name, parts->key, static_cast<KeyType>(parts->type));
  if (!key) return key;
  if (key->text() != text)
    return caller_error("malformed verifier key: its key ID does not match its name and key");
  return key;
}

std::string VerifierKey::text() const {
  return fmt::format("{}+{:08x}+{}", name_, id_, base64_encode(with_type(type_, key_)));
}

bool VerifierKey::verifies(std::string_view text, std::span<const std::uint8_t> signature) const {
  return type_ == KeyType::kCosignature ? verify_cosignature(text, key_, signature)
                                        : verify_signature(key_, as_bytes(text), signature);
}

Result<SignerKey> SignerKey::make(std::string name, PrivateKey key) {
  auto verifier = VerifierKey::make(std::move(name), key.public_key());
  if (!verifier) return verifier.error();
  return SignerKey(std::move(*verifier), std::move(key));
}

Result<SignerKey> SignerKey::generate(std::string name) {
  auto key = PrivateKey::generate();
  if (!key) return key.error();
  return make(std::move(name), std::move(*key));
}

Result<SignerKey> SignerKey::parse(std::string_view text) {
  const Error form =
      caller_error("malformed signing key: expected PRIVATE+KEY+name+id+base64 of an Ed25519 seed");
  if (!text.starts_with(kSecretPrefix)) return form;
  auto parts = split_key_text(text.substr(kSecretPrefix.size()));
  if (!parts) return form;
  if (parts->type != static_cast<std::uint8_t>(KeyType::kEd25519)) {
    wipe(parts->key);
    return form;
  }
  auto key = make(std::move(parts->name), PrivateKey::from_seed(parts->key));
  wipe(parts->key);
  if (!key) return key;
  std::string again = key->secret_text();
  const bool same = again == text;
  wipe({reinterpret_cast<std::uint8_t*>(again.data()), again.size()});
  if (!same) return caller_error("malformed signing key: its key ID does not match its name and key");
  return key;
}

std::string SignerKey::secret_text() const {
  Seed seed = key_.seed();
  TypedKey typed = with_type(KeyType::kEd25519, seed);
  std::string text =
      fmt::format("{}{}+{:08x}+{}", kSecretPrefix, verifier_.name(), verifier_.id(), base64_encode(typed));
  wipe(seed);
  wipe(typed);
  return text;
}

Signature SignerKey::sign(std::string_view text) const { return key_.sign(as_bytes(text)); }

Result<SignedNote> parse_note(std::string_view note) {
  if (std::cmp_greater(note.size(), bounds::kMaxNoteBytes)) {
    return malformed(fmt::format("longer than {} bytes", bounds::kMaxNoteBytes));
  }
  if (!valid_note_text(note)) {
    return malformed("it must be UTF-8, end in a newline and hold no other control character");
  }
  const std::size_t blank = note.rfind("\n\n");
  if (blank == std::string_view::npos) return malformed("no blank line between the text and the signatures");
  SignedNote out;
  out.text = std::string(note.substr(0, blank + 1));
  std::string_view lines = note.substr(blank + 2);
  if (lines.empty()) return malformed("no signature");
  while (!lines.empty()) {
    if (std::cmp_equal(out.signatures.size(), bounds::kMaxNoteSignatures)) {
      return malformed(fmt::format("more than {} signatures", bounds::kMaxNoteSignatures));
    }
    const std::size_t end = lines.find('\n');
    auto signature = parse_signature_line(lines.substr(0, end));
    if (!signature) return signature.error();
    out.signatures.push_back(std::move(*signature));
    lines.remove_prefix(end + 1);
  }
  return out;
}

std::string format_note(const SignedNote& note) {
  std::string out = note.text + "\n";
  for (const NoteSignature& signature : note.signatures) {
    Bytes bytes;
    for (int shift = 24; shift >= 0; shift -= 8)
      bytes.push_back(static_cast<std::uint8_t>(signature.key_id >> shift));
    bytes.insert(bytes.end(), signature.bytes.begin(), signature.bytes.end());
    out += fmt::format("{}{} {}\n", kSignaturePrefix, signature.key_name, base64_encode(bytes));
  }
  return out;
}

Result<SignedNote> sign_note(std::string text, const SignerKey& signer) {
  if (!valid_note_text(text)) {
    return caller_error("a text to sign must be UTF-8, end in a newline and hold no other control character");
  }
  const Signature signature = signer.sign(text);
  SignedNote note;
  note.text = std::move(text);
  note.signatures.push_back(
      {signer.verifier().name(), signer.verifier().id(), Bytes(signature.begin(), signature.end())});
  return note;
}

Result<SignedNote> merge_signatures(const SignedNote& first, const SignedNote& second) {
  if (first.text != second.text)
    return caller_error("signatures of two notes with different texts do not go together");
  SignedNote out = first;
  for (const NoteSignature& added : second.signatures) {
    const auto same =
        std::find_if(out.signatures.begin(), out.signatures.end(), [&](const NoteSignature& present) {
          return present.key_id == added.key_id && present.key_name == added.key_name;
        });
    if (same == out.signatures.end()) {
      out.signatures.push_back(added);
    } else {
      *same = added;
    }
  }
  if (std::cmp_greater(out.signatures.size(), bounds::kMaxNoteSignatures)) {
    return caller_error(fmt::format("a note holds at most {} signatures", bounds::kMaxNoteSignatures));
  }
  return out;
}

Result<SignedNote> open_note(std::string_view note, std::span<const VerifierKey> known) {
  auto parsed = parse_note(note);
  if (!parsed) return parsed;
  bool verified = false;
  for (const NoteSignature& signature : parsed->signatures) {
    const auto key = std::find_if(known.begin(), known.end(),
                                  [&](const VerifierKey& candidate) { return signature.names(candidate); });
    if (key == known.end()) continue;
    if (!key->verifies(parsed->text, signature.bytes)) {
      return refuted(fmt::format("the signature by {} does not verify", key->text()));
    }
    verified = true;
  }
  if (!verified) return refuted("no signature by a known key");
  return parsed;
}

}  // namespace fieldprint::ledger
