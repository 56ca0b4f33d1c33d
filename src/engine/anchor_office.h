#pragma once

#include <cstdint>

#include "anchor/registry.h"
#include "base/result.h"
#include "engine/authority.h"
#include "store/signed_log.h"

/// Enters records about anchors in the ledger that an authority follows.
namespace fieldprint::engine {

/// Appends the record, durably, and applies it; the index of its leaf. A record that would change nothing is
/// refused with the reason, and does not enter the ledger; nor does one whose time is more than
/// bounds::kMaxRecordLeadSeconds ahead of this machine's clock, and after the latest in the ledger.
Result<std::uint64_t> enter(Authority& authority, store::SignedLog& log, const anchor::Bytes& record);

/// Where a ledger has no policy yet, has the log's key propose, verify and promote the anchor, as far as that
/// was not done before; where it has one, does nothing. Then Authority::admit. Nothing enters the ledger for
/// an anchor that would not be admitted afterwards.
Status adopt(Authority& authority, store::SignedLog& log, const anchor::Anchor& anchor,
             const anchor::Use& use);

}  // namespace fieldprint::engine
