#include "cli/ledger_options.h"

#include "base/bounds.h"
#include "base/file.h"

namespace fieldprint::cli {

void add_place_options(CLI::App& command, store::DataFolder& place) {
  command.add_option("--data", place.folder, "folder of the ledger and its key, as of `run --data`");
  command.add_option(
      "--database", place.database,
      "PostgreSQL database of the ledger (postgresql://USER@HOST/NAME), instead of a file in --data");
}

Result<std::unique_ptr<store::LedgerStore>> open_place(const store::DataFolder& place, store::Access access) {
  if (place.folder.empty() && place.database.empty()) {
    return caller_error("say where the ledger is: --data FOLDER, or --database URL");
  }
  if (!place.database.empty() && !store::is_database_url(place.database)) {
    return caller_error(
        "--database takes a URL such as postgresql://USER@HOST/NAME; for a folder use --data");
  }
  return store::open_ledger(place.ledger(), access);
}

Result<std::vector<ledger::VerifierKey>> read_verifier_keys(const std::vector<std::string>& paths) {
  std::vector<ledger::VerifierKey> keys;
  for (const std::string& path : paths) {
    auto line = read_text(path, bounds::kMaxKeyFileBytes);
    if (!line) return line.error();
    line->erase(line->find_last_not_of(" \r\n") + 1);
    auto key = ledger::VerifierKey::parse(*line);
    if (!key) return caller_error(fmt::format("{}: {}", path, key.error().message));
    keys.push_back(std::move(*key));
  }
  return keys;
}

Result<std::string> read_text(const std::string& path, std::int64_t max_bytes) {
  auto bytes = read_file(path, max_bytes);
  if (!bytes) return bytes.error();
  return std::string(bytes->begin(), bytes->end());
}

}  // namespace fieldprint::cli
