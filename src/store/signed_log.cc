#include "store/signed_log.h"

#include <utility>

#include "ledger/checkpoint.h"

namespace fieldprint::store {

Result<std::unique_ptr<SignedLog>> SignedLog::open(std::unique_ptr<LedgerStore> store,
                                                   ledger::SignerKey signer) {
  auto last = store->checkpoint();
  if (!last) return last.error();
  if (*last) {
    auto opened = ledger::open_checkpoint(**last, {&signer.verifier(), 1});
    if (!opened) {
      return caller_error(
          fmt::format("the ledger's last checkpoint was not signed by {}: {}; use the key it began with",
                      signer.verifier().text(), opened.error().message));
    }
  }
  return std::unique_ptr<SignedLog>(new SignedLog(std::move(store), std::move(signer)));
}

Result<std::vector<LoggedLeaf>> SignedLog::append(std::span<const Bytes> leaves) {
  if (leaves.empty()) return caller_error("there is no leaf to append");
  const std::lock_guard lock(mutex_);
  auto first = store_->append(leaves);
  if (!first) return first.error();
  const std::uint64_t size = *first + leaves.size();
  auto root = store_->root_at(size);
  if (!root) return root.error();
  auto checkpoint = ledger::sign_checkpoint(size, *root, signer_);
  if (!checkpoint) return checkpoint.error();
  if (Status status = store_->keep_checkpoint(*checkpoint); !status) return status.error();

  std::vector<LoggedLeaf> logged;
  for (std::uint64_t index = *first; index < size; ++index) {
    auto proof = store_->inclusion_proof(index, size);
    if (!proof) return proof.error();
    logged.push_back({index, size, std::move(*proof), *checkpoint});
  }
  return logged;
}

}  // namespace fieldprint::store
