#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "core/ids.h"

namespace fieldprint::scheduler {

/// Virtual token counters, one a tenant, for fair queueing between tenants that have work: the one with the
/// smallest counter goes first (Sheng et al., Fairness in Serving Large Language Models, OSDI 2024). Idle
/// time earns no credit: a tenant that comes back starts at the smallest counter of those with work, or at
/// its own if that is larger.
class FairShare {
 public:
  /// The tenant has one more sequence waiting or running.
  void enter(core::TenantId tenant);
  /// The tenant has one sequence less.
  void leave(core::TenantId tenant);
  /// The tenant was given `tokens` computed tokens (cached ones are free).
  void charge(core::TenantId tenant, std::int64_t tokens);
  /// Its counter; for a tenant without one, what it would start at.
  std::int64_t served(core::TenantId tenant) const;
  /// Counters kept; idle tenants are forgotten once their counter says nothing.
  std::size_t size() const { return tenants_.size(); }

 private:
  struct Tenant {
    std::int64_t served = 0;
    std::int64_t sequences = 0;
  };

  /// Also forgets idle tenants at or below the floor: they would start there anyway.
  void raise_floor();

  std::map<core::TenantId, Tenant> tenants_;
  std::int64_t floor_ = 0;  ///< smallest counter of tenants with work, never falls
};

}  // namespace fieldprint::scheduler
