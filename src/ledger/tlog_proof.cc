#include "ledger/tlog_proof.h"

#include <algorithm>

#include "base/base64.h"
#include "base/bounds.h"
#include "ledger/merkle.h"
#include "ledger/text_lines.h"

namespace fieldprint::ledger {
namespace {

constexpr std::string_view kHeader = "c2sp.org/tlog-proof@v1";
constexpr std::string_view kExtra = "extra ";
constexpr std::string_view kIndex = "index ";

Error malformed(std::string_view what) { return caller_error(fmt::format("malformed tlog-proof: {}", what)); }

}  // namespace

std::string format_tlog_proof(const TlogProof& proof) {
  std::string text = fmt::format("{}\n", kHeader);
  if (proof.extra) text += fmt::format("{}{}\n", kExtra, base64_encode(*proof.extra));
  text += fmt::format("{}{}\n", kIndex, proof.index);
  for (const Digest& hash : proof.hashes) text += base64_encode(hash) + "\n";
  return text + "\n" + proof.checkpoint;
}

Result<TlogProof> parse_tlog_proof(std::string_view text) {
  TlogProof proof;
  if (next_line(text) != kHeader) return malformed(fmt::format("the first line must be {}", kHeader));
  auto line = next_line(text);
  if (line && line->starts_with(kExtra)) {
    proof.extra = base64_decode(line->substr(kExtra.size()));
    if (!proof.extra) return malformed("the extra data must be base64");
    line = next_line(text);
  }
  if (!line || !line->starts_with(kIndex) || !parse_decimal(line->substr(kIndex.size()), proof.index)) {
    return malformed("expected a line 'index N' with a decimal without leading zeros");
  }
  while (true) {
    line = next_line(text);
    if (!line) return malformed("no blank line before the checkpoint");
    if (line->empty()) break;
    const auto bytes = base64_decode(*line);
    Digest hash{};
    if (!bytes || bytes->size() != hash.size()) return malformed("a hash must be the base64 of 32 bytes");
    if (std::cmp_equal(proof.hashes.size(), bounds::kMaxProofHashes)) {
      return malformed(fmt::format("more than {} hashes", bounds::kMaxProofHashes));
    }
    std::copy(bytes->begin(), bytes->end(), hash.begin());
    proof.hashes.push_back(hash);
  }
  auto note = parse_note(text);
  if (!note) return malformed(note.error().message);
  if (auto checkpoint = parse_checkpoint(note->text); !checkpoint)
    return malformed(checkpoint.error().message);
  proof.checkpoint = std::string(text);
  return proof;
}

Result<VerifiedProof> open_witnessed(std::string_view note, const TrustPolicy& policy) {
  auto checkpoint = open_checkpoint(note, policy.logs);
  if (!checkpoint) return checkpoint.error();
  auto parsed = parse_note(note);
  if (!parsed) return parsed.error();
  auto cosignatures = cosignatures_of(*parsed, policy.witnesses);
  if (!cosignatures) return cosignatures.error();
  if (cosignatures->size() < policy.quorum) {
    return refuted(fmt::format("{} of the {} witnesses that are needed have cosigned the checkpoint",
                               cosignatures->size(), policy.quorum));
  }
  return VerifiedProof{std::move(*checkpoint), std::move(*cosignatures)};
}

Result<VerifiedProof> verify_tlog_proof(const TlogProof& proof, const Digest& leaf_hash,
                                        const TrustPolicy& policy) {
  auto opened = open_witnessed(proof.checkpoint, policy);
  if (!opened) return opened;
  const Checkpoint& checkpoint = opened->checkpoint;
  Status status = verify_inclusion(leaf_hash, proof.index, checkpoint.size, proof.hashes, checkpoint.root);
  if (!status) return status.error();
  return opened;
}

}  // namespace fieldprint::ledger
