#include "engine/anchor_office.h"

#include <algorithm>

#include "base/bounds.h"
#include "base/fault_point.h"
#include "base/utc_time.h"

namespace fieldprint::engine {
namespace {

using anchor::AnchorState;
using anchor::Role;

// The steps that are left until the anchor is promoted.
std::vector<Role> steps_for(const anchor::Entry* entry) {
  if (entry == nullptr) return {Role::kPropose, Role::kVerify, Role::kPromote};
  if (entry->state == AnchorState::kCandidate) return {Role::kVerify, Role::kPromote};
  if (entry->state == AnchorState::kVerified) return {Role::kPromote};
  return {};
}

// What became of the leaf at `index`, by those before it: the registry has taken some of them.
Status outcome_of(std::uint64_t index, anchor::Registry registry, store::LedgerStore& ledger) {
  Status status;
  while (registry.size() <= index) {
    const std::uint64_t end = std::min<std::uint64_t>(index + 1, registry.size() + bounds::kReplayLeaves);
    auto leaves = ledger.leaves(registry.size(), end);
    if (!leaves) return leaves.error();
    if (leaves->empty()) {
      return environment_error(fmt::format("the ledger {} has no leaf {}", ledger.name(), registry.size()));
    }
    for (const store::Bytes& leaf : *leaves) status = registry.apply(registry.size(), leaf);
  }
  return status;
}

// Nobody moves the ledger's time ahead of the clock. A record no later than the latest moves nothing.
Status check_time(const anchor::Registry& registry, const anchor::Bytes& record) {
  const std::int64_t time = anchor::time_of(record).value_or(0);
  const std::int64_t now = utc_now();
  if (time <= registry.latest_time() || time <= now + bounds::kMaxRecordLeadSeconds) return {};
  return caller_error(
      fmt::format("the record is of {}, but the clock of this machine says {}; a record may be {} seconds "
                  "ahead: set the clock that is wrong, and sign again",
                  format_utc(time), format_utc(now), bounds::kMaxRecordLeadSeconds));
}

}  // namespace

Result<std::uint64_t> enter(Authority& authority, store::SignedLog& log, const anchor::Bytes& record) {
  (void)authority.poll();
  if (Status status = authority.readable(); !status) return status.error();
  const anchor::Registry before = authority.registry();
  if (Status status = before.judge(record); !status) return status.error();
  if (Status status = check_time(before, record); !status) return status.error();
  if (Status status = FAULT_POINT("anchor.before_record"); !status) return status.error();
  auto logged = log.append({&record, 1});
  if (!logged) return logged.error();
  CRASH_POINT("anchor.recorded");
  (void)authority.poll();
  if (Status status = authority.readable(); !status) return status.error();
  // Another process's record may have come between.
  const std::uint64_t index = logged->front().index;
  if (Status status = outcome_of(index, before, log.store()); !status) return status.error();
  return index;
}

Status adopt(Authority& authority, store::SignedLog& log, const anchor::Anchor& anchor,
             const anchor::Use& use) {
  (void)authority.poll();
  if (Status status = authority.readable(); !status) return status;
  anchor::Registry registry = authority.registry();
  const auto steps = registry.policy() ? std::vector<Role>() : steps_for(registry.find(anchor.id()));
  std::vector<store::Bytes> records;
  for (const Role step : steps) {
    anchor::ActionRecord record = registry.draft(step, anchor.id(), use.time);
    if (step == Role::kPropose) record.canonical = anchor.canonical_bytes();
    anchor::sign(record, log.signer());
    records.push_back(anchor::encode(record));
    if (Status status = check_time(registry, records.back()); !status) return status;
    if (Status status = registry.apply(registry.size(), records.back()); !status) return status;
  }
  if (Status status = registry.admit(anchor.id(), use); !status || records.empty()) return status;
  if (auto logged = log.append(records); !logged) return logged.error();
  CRASH_POINT("anchors.adopted");
  (void)authority.poll();
  return authority.admit(anchor.id(), use);
}

}  // namespace fieldprint::engine
