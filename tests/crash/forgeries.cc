#include "crash/forgeries.h"

#include <algorithm>
#include <vector>

#include "base/check.h"
#include "ledger/checkpoint.h"
#include "ledger/ed25519.h"

namespace fieldprint::crash {
namespace {

using Bytes = std::vector<std::uint8_t>;

struct Case {
  std::string_view key, message, signature;
};

// RFC 8032 §7.1, TEST 1 to 3.
constexpr Case kCases[] = {
    {"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f"
     "0595bbe24655"
     "141438e7a100b"},
    {"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2ea"
     "eb4302aeeb00"
     "d291612bb0c00"},
    {"fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e"
     "9716ed28dc02"
     "7beceea1ec40a"},
};

// The order of the group, little endian: S and S + L name the same number, and only S may pass.
constexpr std::string_view kOrder = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010";

template <class T>
T from(std::string_view hex) {
  T out{};
  CHECK(from_hex(hex, out));
  return out;
}

class Trial {
 public:
  explicit Trial(std::string what) { tally_.what = std::move(what); }
  void refused(bool accepted, std::string_view what) {
    ++tally_.tried;
    if (!accepted) ++tally_.answered;
    if (accepted && tally_.problem.empty()) tally_.problem = fmt::format("accepted: {}", what);
  }
  Tally tally() const { return tally_; }

 private:
  Tally tally_;
};

ledger::Signature with_order_added(ledger::Signature signature) {
  const auto order = from<Digest>(kOrder);
  unsigned carry = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    carry += static_cast<unsigned>(signature[32 + i]) + order[i];
    signature[32 + i] = static_cast<std::uint8_t>(carry);
    carry >>= 8;
  }
  return signature;
}

void forge(const Case& given, Trial& trial) {
  const auto key = from<ledger::PublicKey>(given.key);
  const auto signature = from<ledger::Signature>(given.signature);
  Bytes message(given.message.size() / 2);
  CHECK(from_hex(given.message, message));
  CHECK(ledger::verify_signature(key, message, signature), "a vector of RFC 8032 does not verify");
  for (std::size_t bit = 0; bit < signature.size() * 8; ++bit) {
    auto altered = signature;
    altered[bit / 8] ^= static_cast<std::uint8_t>(1u << bit % 8);
    trial.refused(ledger::verify_signature(key, message, altered), "a signature with one bit altered");
  }
  for (std::size_t bit = 0; bit < message.size() * 8; ++bit) {
    Bytes altered = message;
    altered[bit / 8] ^= static_cast<std::uint8_t>(1u << bit % 8);
    trial.refused(ledger::verify_signature(key, altered, signature), "a message with one bit altered");
  }
  for (std::size_t bit = 0; bit < key.size() * 8; ++bit) {
    auto altered = key;
    altered[bit / 8] ^= static_cast<std::uint8_t>(1u << bit % 8);
    trial.refused(ledger::verify_signature(altered, message, signature), "a key with one bit altered");
  }
  trial.refused(ledger::verify_signature(key, message, with_order_added(signature)), "S + L");
  Bytes other(signature.begin(), signature.end());
  std::rotate(other.begin(), other.begin() + 32, other.end());
  trial.refused(ledger::verify_signature(key, message, other), "R and S exchanged");
  for (const std::uint8_t fill : Bytes{0x00, 0x01, 0x7f, 0xff}) {
    for (const std::size_t part : {0, 1, 2}) {
      Bytes filled(signature.begin(), signature.end());
      std::fill(filled.begin() + (part == 1 ? 32 : 0), filled.begin() + (part == 0 ? 32 : 64), fill);
      trial.refused(ledger::verify_signature(key, message, filled), "R, S or both of one byte");
    }
  }
  for (const std::size_t length : {0, 1, 32, 63, 65, 128}) {
    Bytes cut(signature.begin(), signature.end());
    cut.resize(length);
    trial.refused(ledger::verify_signature(key, message, cut), "a signature of another length");
  }
  Bytes longer = message;
  longer.push_back(0);
  trial.refused(ledger::verify_signature(key, longer, signature), "a message with a byte more");
}

Digest root_of_ones() {
  Digest root{};
  root.fill(1);
  return root;
}

}  // namespace

Tally forge_signatures() {
  Trial trial("forged Ed25519 signatures");
  for (const Case& given : kCases) forge(given, trial);
  return trial.tally();
}

Tally forge_checkpoints() {
  Trial trial("forged signed checkpoints");
  const auto key =
      *ledger::SignerKey::make("example.com/log", ledger::PrivateKey::from_seed(ledger::Seed{1}));
  const auto stranger =
      *ledger::SignerKey::make("example.com/log", ledger::PrivateKey::from_seed(ledger::Seed{2}));
  const auto renamed =
      *ledger::SignerKey::make("example.com/lob", ledger::PrivateKey::from_seed(ledger::Seed{1}));
  const std::vector<ledger::VerifierKey> known = {key.verifier()};
  const std::string note = *ledger::sign_checkpoint(70, root_of_ones(), key);
  CHECK(ledger::open_checkpoint(note, known).ok());
  const auto passes = [&](const std::string& forged) { return ledger::open_checkpoint(forged, known).ok(); };
  for (std::size_t place = 0; place < note.size(); ++place) {
    for (const char c : {'0', 'A', ' ', '\n', static_cast<char>(note[place] ^ 1)}) {
      std::string altered = note;
      altered[place] = c;
      // Of the last base64 letter's bits some are padding, which a strict decoder refuses too.
      if (altered != note) trial.refused(passes(altered), "a checkpoint with a byte altered");
    }
    trial.refused(passes(note.substr(0, place)), "a checkpoint cut short");
  }
  trial.refused(passes(*ledger::sign_checkpoint(70, root_of_ones(), stranger)),
                "another key of the same name");
  trial.refused(passes(*ledger::sign_checkpoint(70, root_of_ones(), renamed)), "the key under another name");
  // A stranger's signature under the log's key id.
  auto parsed = *ledger::parse_note(*ledger::sign_checkpoint(70, root_of_ones(), stranger));
  parsed.signatures.front().key_id = key.verifier().id();
  trial.refused(passes(ledger::format_note(parsed)), "a stranger's signature under the log's key id");
  // The signature of one checkpoint under the text of another.
  auto mixed = *ledger::parse_note(note);
  mixed.text = ledger::parse_note(*ledger::sign_checkpoint(71, root_of_ones(), key))->text;
  trial.refused(passes(ledger::format_note(mixed)), "the signature of another checkpoint");
  mixed = *ledger::parse_note(note);
  mixed.signatures.clear();
  trial.refused(passes(mixed.text + "\n"), "no signature");
  return trial.tally();
}

}  // namespace fieldprint::crash
