#include "commit/receipt_file.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "base/bounds.h"
#include "base/fault_point.h"
#include "base/file.h"

namespace fieldprint::commit {
namespace {

bool valid_id(std::string_view id) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return !id.empty() && id.front() != '.' && std::cmp_less_equal(id.size(), bounds::kMaxReceiptId) &&
         std::all_of(id.begin(), id.end(), allowed);
}

// A receipt without its view is none, and would be in the way of the next attempt.
Error take_back(const std::string& receipt, Error error) {
  if (const Status removed = remove_receipt(receipt); !removed)
    error.message += "; and " + removed.error().message;
  return error;
}

}  // namespace

Status check_receipt_id(std::string_view id) {
  if (valid_id(id)) return {};
  return caller_error(
      fmt::format("an id must be 1 to {} letters, digits, dots, hyphens or underscores and not start with a "
                  "dot, because it names the receipt's file",
                  bounds::kMaxReceiptId));
}

Result<std::string> write_receipt(const std::string& folder, std::string_view id, const Receipt& receipt) {
  if (Status status = check_receipt_id(id); !status) return status.error();
  auto bytes = encode(receipt);
  if (!bytes) return bytes.error();
  auto json = to_json(receipt);
  if (!json) return json.error();
  const std::string stem = fmt::format("{}/{}", folder, id);
  if (Status status = FAULT_POINT("receipt.before_creation"); !status) return status.error();
  auto created = create_file_atomically(stem + ".receipt", *bytes, 0644);
  if (!created) return created.error();
  if (!*created) return caller_error(fmt::format("{}.receipt is there already and stays as it is", stem));
  CRASH_POINT("receipt.created");
  if (Status status = write_file_atomically(stem + ".json", std::string_view(*json)); !status)
    return take_back(stem + ".receipt", status.error());
  CRASH_POINT("receipt.complete");
  return stem + ".receipt";
}

Status remove_receipt(const std::string& path) {
  const std::filesystem::path receipt(path);
  Status status;
  for (const auto& file : {receipt, std::filesystem::path(receipt).replace_extension(".json")}) {
    std::error_code failure;
    // What else is in a file's place is somebody else's, be it a link.
    if (std::filesystem::is_regular_file(std::filesystem::symlink_status(file, failure)))
      std::filesystem::remove(file, failure);
    if (failure && failure != std::errc::no_such_file_or_directory)
      status = environment_error(fmt::format("cannot remove {}: {}", file.string(), failure.message()));
  }
  const Status synced = sync_folder_of(path);
  return status ? synced : status;
}

Result<bool> has_receipt(const std::string& folder, std::string_view id) {
  std::error_code failure;
  const std::string stem = fmt::format("{}/{}", folder, id);
  const bool there = std::filesystem::exists(stem + ".receipt", failure);
  if (failure) return environment_error(fmt::format("cannot examine {}: {}", folder, failure.message()));
  if (there) return true;
  if (Status status = check_replaceable(stem + ".json"); !status) return status.error();
  return false;
}

Result<Receipt> read_receipt(const std::string& path) {
  auto bytes = read_file(path, bounds::kMaxReceiptBytes);
  if (!bytes) return bytes.error();
  auto receipt = decode(*bytes);
  if (const auto other = receipt ? std::nullopt : other_version(*bytes))
    return Error{other->kind, fmt::format("{}: {}", path, other->message)};
  if (!receipt)
    return Error{receipt.error().kind,
                 fmt::format("{}: not a sound receipt: {}", path, receipt.error().message)};
  return receipt;
}

}  // namespace fieldprint::commit
