#include "ledger/cosignature.h"

#include <algorithm>
#include <string>

namespace fieldprint::ledger {
namespace {

constexpr std::size_t kTimeBytes = 8;
constexpr std::size_t kCosignatureBytes = kTimeBytes + std::tuple_size_v<Signature>;

std::string signed_message(std::string_view text, std::uint64_t time) {
  return fmt::format("cosignature/v1\ntime {}\n{}", time, text);
}

std::span<const std::uint8_t> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

}  // namespace

NoteSignature cosign(std::string_view text, const VerifierKey& witness, const PrivateKey& key,
                     std::uint64_t time) {
  CHECK(witness.type() == KeyType::kCosignature && witness.key() == key.public_key() && time >> 63 == 0);
  NoteSignature line = {witness.name(), witness.id(), {}};
  for (int shift = 56; shift >= 0; shift -= 8) line.bytes.push_back(static_cast<std::uint8_t>(time >> shift));
  const Signature signature = key.sign(as_bytes(signed_message(text, time)));
  line.bytes.insert(line.bytes.end(), signature.begin(), signature.end());
  return line;
}

std::optional<std::uint64_t> cosignature_time(std::span<const std::uint8_t> signature) {
  if (signature.size() != kCosignatureBytes) return std::nullopt;
  std::uint64_t time = 0;
  for (const std::uint8_t byte : signature.first(kTimeBytes)) time = time << 8 | byte;
  if (time >> 63 != 0) return std::nullopt;
  return time;
}

bool verify_cosignature(std::string_view text, const PublicKey& key,
                        std::span<const std::uint8_t> signature) {
  const auto time = cosignature_time(signature);
  return time && verify_signature(key, as_bytes(signed_message(text, *time)), signature.subspan(kTimeBytes));
}

Result<std::vector<Cosignature>> cosignatures_of(const SignedNote& note,
                                                 std::span<const VerifierKey> witnesses) {
  std::vector<Cosignature> found;
  for (const NoteSignature& signature : note.signatures) {
    const auto witness = std::find_if(witnesses.begin(), witnesses.end(), [&](const VerifierKey& candidate) {
      return candidate.type() == KeyType::kCosignature && signature.names(candidate);
    });
    if (witness == witnesses.end()) continue;
    if (!witness->verifies(note.text, signature.bytes)) {
      return refuted(fmt::format("the cosignature by {} does not verify", witness->text()));
    }
    const bool counted = std::any_of(found.begin(), found.end(), [&](const Cosignature& other) {
      return other.witness.key() == witness->key();
    });
    if (!counted) found.push_back({*witness, *cosignature_time(signature.bytes)});
  }
  return found;
}

Result<SignedNote> parse_cosigned(std::string_view answer, const SignedNote& last) {
  constexpr std::string_view kEmDash = "\xe2\x80\x94 ";
  if (!answer.starts_with(kEmDash)) return parse_note(answer);
  return parse_note(fmt::format("{}\n{}", last.text, answer));
}

}  // namespace fieldprint::ledger
