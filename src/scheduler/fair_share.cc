#include "scheduler/fair_share.h"

#include <algorithm>

#include "base/check.h"

namespace fieldprint::scheduler {

void FairShare::enter(core::TenantId tenant) {
  Tenant& t = tenants_[tenant];
  if (t.sequences++ == 0) {
    t.served = std::max(t.served, floor_);
  }
}

void FairShare::leave(core::TenantId tenant) {
  const auto found = tenants_.find(tenant);
  CHECK(found != tenants_.end() && found->second.sequences > 0, "tenant {} has no sequence", tenant);
  --found->second.sequences;
  raise_floor();
}

void FairShare::charge(core::TenantId tenant, std::int64_t tokens) {
  const auto found = tenants_.find(tenant);
  CHECK(found != tenants_.end() && found->second.sequences > 0, "tenant {} has no sequence", tenant);
  CHECK(tokens >= 0, "{} tokens", tokens);
  found->second.served += tokens;
  raise_floor();
}

std::int64_t FairShare::served(core::TenantId tenant) const {
  const auto found = tenants_.find(tenant);
  return found == tenants_.end() ? floor_ : std::max(found->second.served, floor_);
}

void FairShare::raise_floor() {
  bool working = false;
  std::int64_t smallest = 0;
  for (const auto& [id, tenant] : tenants_) {
    if (tenant.sequences > 0) {
      smallest = working ? std::min(smallest, tenant.served) : tenant.served;
      working = true;
    }
  }
  if (working) {
    floor_ = std::max(floor_, smallest);
  }
  std::erase_if(tenants_,
                [this](const auto& t) { return t.second.sequences == 0 && t.second.served <= floor_; });
}

}  // namespace fieldprint::scheduler
