#include "engine/recorder.h"

#include "base/file.h"
#include "commit/envelope.h"
#include "ledger/key_file.h"
#include "store/sqlite_ledger_store.h"

namespace fieldprint::engine {
namespace {

// The log's origin in its checkpoints and the name of its key.
constexpr char kLogName[] = "fieldprint.local/ledger";

}  // namespace

Result<std::unique_ptr<Recorder>> Recorder::open(const std::string& folder) {
  const bool kept = !folder.empty();
  auto key = kept ? ledger::load_or_create_key_file(folder + "/ledger.key", kLogName)
                  : ledger::SignerKey::generate(kLogName);
  if (!key) return key.error();
  auto store = kept ? store::SqliteLedgerStore::open(folder + "/ledger.sqlite")
                    : store::SqliteLedgerStore::open_in_memory();
  if (!store) return store.error();
  if (kept) {
    const std::string line = key->verifier().text() + "\n";
    if (Status status = write_file_atomically(folder + "/ledger.pub", std::string_view(line)); !status)
      return status.error();
  }
  auto log = store::SignedLog::open(std::move(*store), std::move(*key));
  if (!log) return log.error();
  return std::unique_ptr<Recorder>(new Recorder(std::move(*log)));
}

Result<commit::Receipt> Recorder::record(const commit::Body& body) {
  auto leaf = commit::encode_body(body);
  if (!leaf) return leaf.error();
  auto logged = log_->append({&*leaf, 1});
  if (!logged) return logged.error();
  store::LoggedLeaf& entry = logged->front();
  commit::Receipt receipt;
  receipt.body = body;
  receipt.leaf_index = entry.index;
  receipt.tree_size = entry.tree_size;
  receipt.inclusion_proof = std::move(entry.inclusion_proof);
  receipt.checkpoint = std::move(entry.checkpoint);
  receipt.verifier_key = log_->verifier().text();
  if (Status status = commit::seal(receipt); !status) return status.error();
  return receipt;
}

}  // namespace fieldprint::engine
