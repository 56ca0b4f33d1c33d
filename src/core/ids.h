#pragma once

#include <cstdint>

/// Names of things that more than one stage speaks of.
namespace fieldprint::core {

using SequenceId = std::uint64_t;  ///< unique while the engine lives
using TenantId = std::uint64_t;    ///< the engine maps its tenants' names to these
using BlockId = std::int32_t;      ///< index into the block pool, 0 ≤ id < blocks

}  // namespace fieldprint::core
