#include "store/data_folder.h"

#include "base/file.h"
#include "ledger/key_file.h"
#include "store/sqlite_ledger_store.h"

namespace fieldprint::store {
namespace {

// The log's origin in its checkpoints and the name of its key.
constexpr char kLogName[] = "fieldprint.local/ledger";

}  // namespace

Result<std::unique_ptr<SignedLog>> open_log(const DataFolder& place) {
  auto key = ledger::load_or_create_key_file(place.signing_key(), kLogName);
  if (!key) return key.error();
  auto store = open_ledger(place.ledger(), Access::kAppend);
  if (!store) return store.error();
  const std::string line = key->verifier().text() + "\n";
  if (Status status = write_file_atomically(place.public_key(), std::string_view(line)); !status)
    return status.error();
  return SignedLog::open(std::move(*store), std::move(*key));
}

Result<std::unique_ptr<SignedLog>> open_passing_log() {
  auto key = ledger::SignerKey::generate(kLogName);
  if (!key) return key.error();
  auto store = SqliteLedgerStore::open_in_memory();
  if (!store) return store.error();
  return SignedLog::open(std::move(*store), std::move(*key));
}

}  // namespace fieldprint::store
