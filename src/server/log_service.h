#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/sha256.h"
#include "ledger/tiles.h"
#include "server/http_server.h"
#include "store/ledger_store.h"

namespace fieldprint::server {

/// A ledger as resources to read (c2sp.org/tlog-tiles), and proofs of single records (c2sp.org/tlog-proof):
/// ledger::LogResource says which. There is what the last checkpoint kept covers, partial tiles of every
/// width in it included. Others may append meanwhile; the checkpoint served follows them, and only ever
/// continues the trees that were served before: otherwise, as where the database does not answer, the answer
/// is 503, to tiles that were covered before too, until a checkpoint continues them again.
class LogService {
 public:
  /// `store`: opened to be followed (store::Access::kFollow). `tell`, if set, hears once of each time when
  /// reading begins to fail, and when it succeeds again.
  explicit LogService(std::unique_ptr<store::LedgerStore> store,
                      std::function<void(std::string_view)> tell = {});

  /// From several threads at once; they take turns to read, and 503 is the answer to whose turn does not come
  /// within bounds::kMaxLedgerWait.
  HttpAnswer answer(const HttpRequest& request);

  /// Leaves that the served checkpoint covers; 0 while there is none.
  Result<std::uint64_t> size();

 private:
  struct Head {
    std::string note;  // the signed checkpoint; empty: none yet
    std::string origin;
    std::uint64_t size = 0;
    Digest root{};
  };
  class Turn;

  Result<std::optional<std::string>> read(const ledger::LogResource& resource);
  Result<std::optional<std::string>> read_in_turn(const ledger::LogResource& resource);
  Status follow();
  Status read_head();
  Status check_continued(const Head& next);
  void note_outcome(const Error* error);

  std::unique_ptr<store::LedgerStore> store_;
  std::function<void(std::string_view)> tell_;
  std::mutex mutex_;
  std::condition_variable free_;
  bool taken_ = false;  // guarded by the mutex, as is failing_
  bool failing_ = false;
  // Of whoever has the turn.
  Head head_;
  bool doubtful_ = false;  // whether the last look at the checkpoint failed
};

}  // namespace fieldprint::server
