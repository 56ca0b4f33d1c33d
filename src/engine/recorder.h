#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "commit/receipt.h"
#include "store/signed_log.h"

namespace fieldprint::engine {

/// Enters records in the ledger and makes their receipts.
class Recorder {
 public:
  /// The key lives in `folder`, which exists, and so does the ledger, unless `database` is the URL of a
  /// PostgreSQL database for it. With an empty folder both live as long as this object.
  static Result<std::unique_ptr<Recorder>> open(const std::string& folder, const std::string& database = {});

  /// When it returns, the record and the checkpoint that covers it are durable.
  Result<commit::Receipt> record(const commit::Body& body);

  store::SignedLog& log() { return *log_; }

 private:
  explicit Recorder(std::unique_ptr<store::SignedLog> log) : log_(std::move(log)) {}

  std::unique_ptr<store::SignedLog> log_;
};

}  // namespace fieldprint::engine
