#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "ledger/ed25519.h"

/// Signed notes (c2sp.org/signed-note) with Ed25519 keys in the text forms of Go's
/// golang.org/x/mod/sumdb/note.
namespace fieldprint::ledger {

/// The signature types of c2sp.org/signed-note that are known here.
enum class KeyType : std::uint8_t {
  kEd25519 = 1,      ///< signs the note's text
  kCosignature = 4,  ///< a witness's cosignature/v1 of a checkpoint (c2sp.org/tlog-cosignature)
};

/// Names a public key. Text form: `name+8 hex digits of the key ID+base64(type || public key)`.
class VerifierKey {
 public:
  static Result<VerifierKey> make(std::string name, const PublicKey& key, KeyType type = KeyType::kEd25519);
  static Result<VerifierKey> parse(std::string_view text);

  const std::string& name() const { return name_; }
  /// First four bytes, big endian, of SHA-256(name || 0x0A || type || public key).
  std::uint32_t id() const { return id_; }
  KeyType type() const { return type_; }
  const PublicKey& key() const { return key_; }
  std::string text() const;
  /// Whether `signature`, the bytes after the key ID, is this key's over a note's text.
  bool verifies(std::string_view text, std::span<const std::uint8_t> signature) const;

  bool operator==(const VerifierKey&) const = default;

 private:
  VerifierKey() = default;
  std::string name_;
  std::uint32_t id_ = 0;
  KeyType type_ = KeyType::kEd25519;
  PublicKey key_{};
};

/// A named private key. Text form: `PRIVATE+KEY+name+8 hex digits of the key ID+base64(0x01 || seed)`.
class SignerKey {
 public:
  static Result<SignerKey> generate(std::string name);
  static Result<SignerKey> make(std::string name, PrivateKey key);
  /// Never quotes the text in an error: it is a secret.
  static Result<SignerKey> parse(std::string_view text);

  const VerifierKey& verifier() const { return verifier_; }
  std::string secret_text() const;
  Signature sign(std::string_view text) const;

 private:
  SignerKey(VerifierKey verifier, PrivateKey key) : verifier_(std::move(verifier)), key_(std::move(key)) {}
  VerifierKey verifier_;
  PrivateKey key_;
};

struct NoteSignature {
  std::string key_name;
  std::uint32_t key_id = 0;
  std::vector<std::uint8_t> bytes;  ///< without the key ID; 64 bytes if made by an Ed25519 key
  /// Whether the line names this key; what it signed is another question.
  bool names(const VerifierKey& key) const { return key.id() == key_id && key.name() == key_name; }
  bool operator==(const NoteSignature&) const = default;
};

struct SignedNote {
  std::string text;  ///< ends in a newline
  std::vector<NoteSignature> signatures;
  bool operator==(const SignedNote&) const = default;
};

/// Reads the form only. The text must be ignored until open_note has found a signature that verifies.
Result<SignedNote> parse_note(std::string_view note);
std::string format_note(const SignedNote& note);

/// Signs a text, which must be non-empty, end in a newline, be UTF-8 and hold no control character but
/// newlines.
Result<SignedNote> sign_note(std::string text, const SignerKey& signer);

/// The signatures of both notes, which have the same text; of two by one key the second note's. Verifies
/// none.
Result<SignedNote> merge_signatures(const SignedNote& first, const SignedNote& second);

/// Parses a note and verifies every signature made by a known key. Refuted if one of them fails or if there
/// is none; signatures by unknown keys are ignored.
Result<SignedNote> open_note(std::string_view note, std::span<const VerifierKey> known);

}  // namespace fieldprint::ledger
