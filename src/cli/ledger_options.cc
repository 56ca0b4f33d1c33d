#include "cli/ledger_options.h"

#include <filesystem>

#include "base/bounds.h"
#include "base/file.h"
#include "ledger/key_file.h"

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

Result<std::unique_ptr<store::SignedLog>> open_for_signing(const store::DataFolder& place) {
  auto store = open_place(place, store::Access::kContinue);
  if (!store) return store.error();
  auto key = ledger::load_key_file(place.signing_key());
  if (!key) return key.error();
  return store::SignedLog::open(std::move(*store), std::move(*key));
}

Result<ledger::VerifierKey> read_log_key(const store::DataFolder& place) {
  if (place.folder.empty()) return caller_error("say where the log's key lies: --data FOLDER");
  auto keys = read_verifier_keys({place.public_key()});
  if (!keys) return keys.error();
  return std::move(keys->front());
}

Status ensure_folder(const std::string& path) {
  if (path.empty()) return {};
  std::error_code failure;
  std::filesystem::create_directories(path, failure);
  if (!failure) return {};
  if (failure == std::errc::not_a_directory || failure == std::errc::file_exists) {
    return caller_error(fmt::format("{} cannot be a folder: a file is in its way", path));
  }
  return environment_error(fmt::format("cannot create the folder {}: {}", path, failure.message()));
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
