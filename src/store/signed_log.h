#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "ledger/signed_note.h"
#include "store/ledger_store.h"

namespace fieldprint::store {

/// What a receipt needs to show that a leaf is in the ledger.
struct LoggedLeaf {
  std::uint64_t index = 0;
  std::uint64_t tree_size = 0;
  std::vector<Digest> inclusion_proof;
  std::string checkpoint;  ///< signed note over tree_size leaves
};

/// A ledger with its signing key. A checkpoint is signed only when its leaves are durable, and given out only
/// when it is durable itself: after a crash the log can never contradict what it has said. Safe to call from
/// several threads; one process at a time may write a log.
class SignedLog {
 public:
  /// Refuses a store whose last checkpoint was not signed by this key.
  static Result<std::unique_ptr<SignedLog>> open(std::unique_ptr<LedgerStore> store,
                                                 ledger::SignerKey signer);

  /// Adds leaves under one new checkpoint; the results are in the order of the leaves, of which there is at
  /// least one.
  Result<std::vector<LoggedLeaf>> append(std::span<const Bytes> leaves);

  const ledger::VerifierKey& verifier() const { return signer_.verifier(); }
  LedgerStore& store() { return *store_; }

 private:
  SignedLog(std::unique_ptr<LedgerStore> store, ledger::SignerKey signer)
      : store_(std::move(store)), signer_(std::move(signer)) {}
  std::mutex mutex_;
  std::unique_ptr<LedgerStore> store_;
  ledger::SignerKey signer_;
};

}  // namespace fieldprint::store
