#include "engine/ledger_anchors.h"

#include <utility>

#include "base/bounds.h"
#include "base/check.h"

namespace fieldprint::engine {
namespace {

// A ledger that could not be read is left alone for so long.
constexpr std::chrono::milliseconds kRetry{50};
// After it has gained something it is watched for so long, as often as this.
constexpr std::chrono::milliseconds kWatchTime{200};
constexpr std::chrono::milliseconds kWatchInterval{1};

}  // namespace

LedgerAnchors::LedgerAnchors(Authority& authority) : authority_(authority) {
  thread_ = std::thread([this] { follow(); });
}

LedgerAnchors::~LedgerAnchors() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void LedgerAnchors::follow() {
  std::unique_lock lock(mutex_);
  std::chrono::steady_clock::time_point watched_until{};
  // What the watch finds once may be this process's own, of which the authority is about to be told.
  bool was_stale = false;
  while (true) {
    const bool watched = std::chrono::steady_clock::now() < watched_until;
    wake_.wait_for(lock, watched ? kWatchInterval : bounds::kMaxLedgerSilence,
                   [&] { return wanted_ || stop_; });
    if (stop_) return;
    const bool wanted = std::exchange(wanted_, false);
    lock.unlock();
    const bool stale = watched && !authority_.fresh();
    const bool due = wanted || !watched || (stale && was_stale);
    was_stale = stale && !due;
    const std::uint64_t before = authority_.size();
    const Status status = due ? poll() : Status();
    if (due && authority_.size() != before) watched_until = std::chrono::steady_clock::now() + kWatchTime;
    lock.lock();
    if (!status) wake_.wait_for(lock, kRetry, [&] { return stop_; });
  }
}

Status LedgerAnchors::poll() {
  (void)authority_.poll();
  // Whoever waits either sees what was read or has not begun to wait.
  { const std::lock_guard lock(mutex_); }
  read_.notify_all();
  return authority_.readable();
}

bool LedgerAnchors::fresh() {
  if (authority_.fresh()) return true;
  {
    const std::lock_guard lock(mutex_);
    wanted_ = true;
  }
  wake_.notify_one();
  return false;
}

Status LedgerAnchors::await_fresh(std::chrono::milliseconds most) {
  if (fresh()) return {};
  std::unique_lock lock(mutex_);
  const bool done =
      read_.wait_for(lock, most, [&] { return authority_.fresh() || !authority_.readable().ok(); });
  if (Status status = authority_.readable(); !status) return status;
  if (done) return {};
  return environment_error(
      fmt::format("the ledger has changed, and was not read again within {} ms", most.count()));
}

Result<commit::AnchorRecord> LedgerAnchors::admit(const Digest& id, const anchor::Use& use) const {
  if (Status status = authority_.admit(id, use); !status) return status.error();
  const std::lock_guard lock(mutex_);
  const auto known = known_.find(id);
  if (known != known_.end()) return known->second;
  const anchor::Registry registry = authority_.registry();
  const anchor::Entry* entry = registry.find(id);
  CHECK(entry != nullptr, "anchor {} is in force and unknown", to_hex(id));
  return known_.emplace(id, commit::AnchorRecord{id, entry->anchor.canonical_bytes()}).first->second;
}

}  // namespace fieldprint::engine
