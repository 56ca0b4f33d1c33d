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
  /// The ledger and its key live in `folder`, which exists; with an empty name they live as long as this
  /// object.
  static Result<std::unique_ptr<Recorder>> open(const std::string& folder);

  /// When it returns, the record and the checkpoint that covers it are durable.
  Result<commit::Receipt> record(const commit::Body& body);

 private:
  explicit Recorder(std::unique_ptr<store::SignedLog> log) : log_(std::move(log)) {}

  std::unique_ptr<store::SignedLog> log_;
};

}  // namespace fieldprint::engine
