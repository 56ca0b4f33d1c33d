#include "cli/anchor_office.h"

#include "cli/ledger_options.h"
#include "ledger/key_file.h"

namespace fieldprint::cli {

void add_office_options(CLI::App& command, store::DataFolder& place) {
  command.add_option("--data", place.folder, "folder of the ledger and its key, as of `run --data`")
      ->required();
  command.add_option(
      "--database", place.database,
      "PostgreSQL database of the ledger (postgresql://USER@HOST/NAME); the key stays in --data");
}

Result<AnchorOffice> AnchorOffice::open(const store::DataFolder& place, bool create) {
  if (create) {
    if (Status status = ensure_folder(place.folder); !status) return status.error();
  }
  auto log = create ? store::open_log(place) : open_for_signing(place);
  if (!log) return log.error();
  auto authority = engine::Authority::follow((*log)->store(), (*log)->verifier());
  if (!authority) return authority.error();
  return AnchorOffice{std::move(*log), std::move(*authority)};
}

Result<ledger::SignerKey> AnchorOffice::signer(const std::string& key_file) const {
  if (key_file.empty()) return log->signer();
  return ledger::load_key_file(key_file);
}

Result<anchor::Registry> read_registry(const store::DataFolder& place) {
  auto key = read_log_key(place);
  if (!key) return key.error();
  auto store = open_place(place, store::Access::kRead);
  if (!store) return store.error();
  auto authority = engine::Authority::follow(**store, *key);
  if (!authority) return authority.error();
  return (*authority)->registry();
}

}  // namespace fieldprint::cli
