#include "ledger/checkpoint.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/base64.h"
#include "base/utf8.h"
#include "ledger/text_lines.h"

namespace fieldprint::ledger {
namespace {

Error malformed(std::string_view what) { return caller_error(fmt::format("malformed checkpoint: {}", what)); }

bool valid_line(std::string_view line) {
  return !line.empty() && valid_utf8(line) &&
         std::none_of(line.begin(), line.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; });
}

}  // namespace

Result<std::string> format_checkpoint(const Checkpoint& checkpoint) {
  if (!valid_line(checkpoint.origin)) return malformed("the origin must be one non-empty line of UTF-8");
  std::string text =
      fmt::format("{}\n{}\n{}\n", checkpoint.origin, checkpoint.size, base64_encode(checkpoint.root));
  for (const std::string& line : checkpoint.extensions) {
    if (!valid_line(line)) return malformed("an extension must be one non-empty line of UTF-8");
    text += line + "\n";
  }
  return text;
}

Result<Checkpoint> parse_checkpoint(std::string_view text) {
  Checkpoint out;
  const auto origin = next_line(text);
  if (!origin || !valid_line(*origin)) return malformed("the first line must be the origin");
  out.origin = std::string(*origin);
  const auto size = next_line(text);
  if (!size || !parse_decimal(*size, out.size)) {
    return malformed("the second line must be the tree size in decimal without leading zeros");
  }
  const auto root = next_line(text);
  const auto root_bytes = root ? base64_decode(*root) : std::nullopt;
  if (!root_bytes || root_bytes->size() != out.root.size()) {
    return malformed("the third line must be the base64 of a SHA-256 root");
  }
  std::copy(root_bytes->begin(), root_bytes->end(), out.root.begin());
  while (!text.empty()) {
    const auto line = next_line(text);
    if (!line || !valid_line(*line)) return malformed("an extension must be one non-empty line of UTF-8");
    out.extensions.emplace_back(*line);
  }
  return out;
}

Result<std::string> sign_checkpoint(std::uint64_t size, const Digest& root, const SignerKey& signer) {
  auto text = format_checkpoint({signer.verifier().name(), size, root, {}});
  if (!text) return text;
  auto note = sign_note(std::move(*text), signer);
  if (!note) return note.error();
  return format_note(*note);
}

Result<Checkpoint> open_checkpoint(std::string_view note, std::span<const VerifierKey> known) {
  auto opened = open_note(note, known);
  if (!opened) return opened.error();
  auto checkpoint = parse_checkpoint(opened->text);
  if (!checkpoint) return checkpoint;
  const bool by_the_log =
      std::any_of(opened->signatures.begin(), opened->signatures.end(), [&](const auto& signature) {
        return signature.key_name == checkpoint->origin &&
               std::any_of(known.begin(), known.end(), [&](const VerifierKey& key) {
                 return key.type() == KeyType::kEd25519 && signature.names(key);
               });
      });
  if (!by_the_log) {
    return refuted(fmt::format("no known key is named like the checkpoint's origin {}", checkpoint->origin));
  }
  return checkpoint;
}

}  // namespace fieldprint::ledger
