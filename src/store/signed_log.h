#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
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

/// A ledger with its signing key. A checkpoint is given out only when it and its leaves are durable, in one
/// transaction: after a crash the log can never contradict what it has said.
///
/// It signs nothing that contradicts what it has signed: before each checkpoint, within the transaction, the
/// last one kept must be by this key and cover every leaf, and the ledger must continue the tree that this
/// object saw last. Leaves that somebody else put there, and a database that went back, stop it.
///
/// Safe to call from several threads. Appends that arrive while another is being committed are committed
/// together, under one checkpoint and with one flush of the disk (group commit): the first that waits leads,
/// the others find their work done.
class SignedLog {
 public:
  /// Refuses a store whose last checkpoint was not signed by this key or does not cover every leaf.
  static Result<std::unique_ptr<SignedLog>> open(std::unique_ptr<LedgerStore> store,
                                                 ledger::SignerKey signer);

  /// The index from which on an append that failed may have put its leaves all the same: a database that is
  /// lost while it commits does not say whether it has.
  using Unsettled = std::optional<std::uint64_t>;

  /// Adds leaves, in a row and under one checkpoint, durably; the results are in the order of the leaves, of
  /// which there is at least one.
  Result<std::vector<LoggedLeaf>> append(std::span<const Bytes> leaves) {
    Unsettled unsettled;
    return append(leaves, unsettled);
  }
  /// The same for who tries again with the same leaves until it succeeds, and keeps `unsettled`, which is
  /// empty at first: leaves that an earlier attempt has put into the ledger are found there and not added
  /// once more.
  Result<std::vector<LoggedLeaf>> append(std::span<const Bytes> leaves, Unsettled& unsettled);

  /// The last checkpoint, which covers every leaf; of an empty ledger without one, signs the first. Leaves
  /// that no checkpoint covers came from elsewhere and are not signed: an environment error.
  Result<std::string> checkpoint();

  /// Adds the cosignatures in what a witness handed back (ledger::parse_cosigned) to the checkpoint that they
  /// are about, which must be one that was given out, and gives that checkpoint with all its signatures.
  /// Only cosignatures by `witnesses` are kept; refuted if there is none or one does not verify.
  Result<std::string> accept_cosignatures(std::string_view answer,
                                          std::span<const ledger::VerifierKey> witnesses);

  const ledger::VerifierKey& verifier() const { return signer_.verifier(); }
  const ledger::SignerKey& signer() const { return signer_; }  ///< for records of the operator's
  LedgerStore& store() { return *store_; }

 private:
  struct Waiting;
  struct Group;
  SignedLog(std::unique_ptr<LedgerStore> store, ledger::SignerKey signer)
      : store_(std::move(store)), signer_(std::move(signer)) {}
  // What this object signed last, or found signed when it was opened.
  struct Said {
    std::string note;
    std::uint64_t size = 0;
    Digest root = ledger::empty_root();
  };
  Result<std::vector<LoggedLeaf>> append_new(std::span<const Bytes> leaves, Unsettled& unsettled);
  Result<std::optional<std::vector<LoggedLeaf>>> find(std::span<const Bytes> leaves, std::uint64_t first);
  Status vouch(const Growing& growing);
  Result<std::string> sign(const Growing& growing);
  void remember(std::string note, std::uint64_t size, const Digest& root);
  Result<std::optional<std::string>> last_checkpoint();
  void lead(std::unique_lock<std::mutex>& lock) noexcept;
  std::vector<Waiting*> take_group();
  Result<std::shared_ptr<const Group>> commit(std::span<Waiting* const> waiting, Unsettled& unsettled);

  std::unique_ptr<LedgerStore> store_;
  ledger::SignerKey signer_;
  std::mutex mutex_;
  std::deque<Waiting*> queue_;  // guarded by mutex_, as is led_
  bool led_ = false;            // somebody commits
  std::mutex said_mutex_;
  Said said_;  // guarded by said_mutex_
};

}  // namespace fieldprint::store
