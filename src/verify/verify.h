#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "commit/envelope.h"
#include "commit/receipt.h"
#include "ledger/signed_note.h"
#include "tokenizer/tokenizer.h"
#include "verify/replay.h"
#include "weights/model_file.h"

/// Re-executes receipts. It knows the model, its arithmetic and the formats, and nothing of how answers are
/// scheduled or served.
namespace fieldprint::verify {

struct Options {
  /// Keys of which one must have signed the checkpoint; empty: the receipt's own key is accepted.
  std::vector<ledger::VerifierKey> trusted;
  /// KV blocks of the answer as `run --export-kv` wrote them, to be checked too where they are given.
  std::optional<std::vector<std::uint8_t>> kv;
  ReplayProgress progress;
};

struct Report {
  bool verified = false;
  std::vector<commit::Check> checks;  ///< in the order in which they were made
  std::int64_t tokens_replayed = 0;
  double seconds = 0;  ///< of the replay

  /// The first check that failed, or null.
  const commit::Check* first_failure() const;
};

/// Checks everything that a receipt states: its envelope, that model and arithmetic are the ones at hand,
/// that the anchors make the anchor tokens, and then by replay every chosen token, how the answer ended, the
/// anchors' mass and every KV block, and that the records before the body are the ones that it follows. An
/// error only where checking itself was impossible.
Result<Report> verify(const commit::Receipt& receipt, const weights::ModelFile& file,
                      const tokenizer::Tokenizer& tokenizer, backend::Backend& backend,
                      const Options& options);

}  // namespace fieldprint::verify
