#include "ledger/key_file.h"

#include <sys/stat.h>

#include <cerrno>
#include <optional>
#include <system_error>

#include "base/bounds.h"
#include "base/fault_point.h"
#include "base/file.h"

namespace fieldprint::ledger {
namespace {

std::span<std::uint8_t> as_writable_bytes(std::string& text) {
  return {reinterpret_cast<std::uint8_t*>(text.data()), text.size()};
}

Result<bool> exists(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) == 0) return true;
  if (errno == ENOENT) return false;
  return environment_error(
      fmt::format("cannot examine the signing key {}: {}", path, std::generic_category().message(errno)));
}

Status check_mode(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    return caller_error(
        fmt::format("cannot open the signing key {}: {}", path, std::generic_category().message(errno)));
  }
  if ((info.st_mode & 077) != 0) {
    return caller_error(
        fmt::format("the signing key {} has mode {:04o}, so that others may use it; run: chmod 600 {}", path,
                    info.st_mode & 07777u, path));
  }
  return {};
}

// Nothing if there is a file already.
Result<std::optional<SignerKey>> make_key_file(const std::string& path, const std::string& name) {
  auto key = SignerKey::generate(name);
  if (!key) return key.error();
  if (Status status = FAULT_POINT("key.before_creation"); !status) return status.error();
  std::string text = key->secret_text() + "\n";
  auto created = create_file_atomically(path, as_writable_bytes(text), 0600);
  wipe(as_writable_bytes(text));
  if (!created) return created.error();
  CRASH_POINT("key.created");
  return *created ? std::optional(std::move(*key)) : std::nullopt;
}

}  // namespace

Result<SignerKey> load_key_file(const std::string& path) {
  if (Status status = check_mode(path); !status) return status.error();
  auto bytes = read_file(path, bounds::kMaxKeyFileBytes);
  if (!bytes) return bytes.error();
  std::string text(bytes->begin(), bytes->end());
  wipe(*bytes);
  const bool one_line = !text.empty() && text.find('\n') == text.size() - 1;
  Result<SignerKey> key = one_line
                              ? SignerKey::parse(std::string_view(text).substr(0, text.size() - 1))
                              : Result<SignerKey>(caller_error("malformed signing key: expected one line"));
  wipe(as_writable_bytes(text));
  if (!key) return caller_error(fmt::format("{}: {}", path, key.error().message));
  return key;
}

Result<SignerKey> create_key_file(const std::string& path, const std::string& name) {
  auto made = make_key_file(path, name);
  if (!made) return made.error();
  if (!*made) return caller_error(fmt::format("{} is there already; keys are never replaced", path));
  return std::move(**made);
}

Result<SignerKey> load_or_create_key_file(const std::string& path, const std::string& name) {
  auto present = exists(path);
  if (!present) return present.error();
  if (!*present) {
    auto made = make_key_file(path, name);
    if (!made) return made.error();
    if (*made) return std::move(**made);
  }
  auto key = load_key_file(path);
  if (key && key->verifier().name() != name) {
    return caller_error(fmt::format("the signing key {} is named {}, not {}; use another file or name", path,
                                    key->verifier().name(), name));
  }
  return key;
}

}  // namespace fieldprint::ledger
