#pragma once

#include "crash/disk_faults.h"

namespace fieldprint::crash {

/// Signatures that are not the key's: of RFC 8032's vectors every bit altered, in signature, message and key,
/// and the malformed kinds that Project Wycheproof collects.
Tally forge_signatures();

/// Signed checkpoints that are not the log's: texts, sizes, roots and signature lines altered, and signed by
/// others.
Tally forge_checkpoints();

}  // namespace fieldprint::crash
