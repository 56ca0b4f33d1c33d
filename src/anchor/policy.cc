#include "anchor/policy.h"

#include <algorithm>
#include <utility>

#include "base/bounds.h"
#include "base/utc_time.h"

namespace fieldprint::anchor {
namespace {

Error unfit(std::string_view why) {
  return caller_error(fmt::format("this policy is not accepted: {}", why));
}

Status check_keys(const Policy& policy) {
  if (policy.keys.empty()) return unfit("it names no key");
  if (std::cmp_greater(policy.keys.size(), bounds::kMaxPolicyKeys)) {
    return unfit(fmt::format("it names {} keys, more than {}", policy.keys.size(), bounds::kMaxPolicyKeys));
  }
  for (std::size_t i = 0; i < policy.keys.size(); ++i) {
    const auto& [key, roles] = policy.keys[i];
    if (key.type() != ledger::KeyType::kEd25519)
      return unfit(fmt::format("{} is no signing key", key.text()));
    if (ledger::is_small_order(key.key())) {
      return unfit(fmt::format("the key of {} lets everybody forge its signatures", key.name()));
    }
    if (roles.empty()) return unfit(fmt::format("{} has no role", key.name()));
    if (!std::is_sorted(roles.begin(), roles.end(), std::less_equal<>())) {
      return unfit(fmt::format("the roles of {} are not in order", key.name()));
    }
    if (i > 0 && policy.keys[i - 1].key.text() >= key.text()) return unfit("its keys are not in order");
    for (std::size_t j = 0; j < i; ++j) {
      const ledger::VerifierKey& other = policy.keys[j].key;
      if (other.key() == key.key())
        return unfit(fmt::format("{} and {} are the same key", other.name(), key.name()));
      if (other.name() == key.name()) return unfit(fmt::format("two keys are named {}", key.name()));
    }
  }
  return {};
}

Status check_single_operator(const Policy& policy) {
  if (policy.keys.size() != 1 || policy.keys[0].roles.size() != kRoles.size()) {
    return unfit("a single operator is one key with every role");
  }
  const bool ones =
      std::all_of(policy.thresholds.begin(), policy.thresholds.end(), [](auto n) { return n == 1; });
  return ones ? Status() : unfit("a single operator's thresholds are all 1");
}

}  // namespace

std::string_view name_of(Role role) {
  switch (role) {
    case Role::kPropose:
      return "propose";
    case Role::kVerify:
      return "verify";
    case Role::kPromote:
      return "promote";
    case Role::kRevoke:
      return "revoke";
    case Role::kAdmin:
      return "admin";
  }
  CHECK(false, "no such role: {}", static_cast<int>(role));
  return {};
}

Result<Role> role(std::string_view name) {
  const auto found = std::find_if(kRoles.begin(), kRoles.end(), [&](Role r) { return name_of(r) == name; });
  if (found == kRoles.end()) return caller_error("a role must be propose, verify, promote, revoke or admin");
  return *found;
}

bool PolicyKey::may(Role role) const { return std::find(roles.begin(), roles.end(), role) != roles.end(); }

const PolicyKey* Policy::find(std::string_view key_text) const {
  const auto found =
      std::find_if(keys.begin(), keys.end(), [&](const PolicyKey& k) { return k.key.text() == key_text; });
  return found == keys.end() ? nullptr : &*found;
}

std::size_t Policy::count(Role role) const {
  return static_cast<std::size_t>(
      std::count_if(keys.begin(), keys.end(), [&](const PolicyKey& key) { return key.may(role); }));
}

Status check(const Policy& policy) {
  if (Status status = check_keys(policy); !status) return status;
  if (policy.time < 0 || policy.time > kLastUtcSecond) return unfit("its time is outside 1970 to 9999");
  for (const Role role : kRoles) {
    const std::size_t keys = policy.count(role);
    if (policy.threshold(role) < 1 || policy.threshold(role) > keys) {
      return unfit(
          fmt::format("to {} takes {} keys, and {} may", name_of(role), policy.threshold(role), keys));
    }
  }
  if (policy.threshold(Role::kPropose) != 1) return unfit("a proposal is always one key's");
  if (policy.single_operator) return check_single_operator(policy);
  for (const PolicyKey& proposer : policy.keys) {
    const bool both = proposer.may(Role::kPropose) && proposer.may(Role::kPromote);
    if (both && policy.threshold(Role::kPromote) > policy.count(Role::kPromote) - 1) {
      return unfit(fmt::format(
          "what {} proposes could never be promoted, because the proposer's key does not count; name "
          "another promote key or lower the threshold",
          proposer.key.name()));
    }
  }
  if (policy.threshold(Role::kAdmin) > policy.count(Role::kAdmin) - 1) {
    return unfit(
        "if one admin key is lost, nobody could change it any more; name another admin key, lower the "
        "threshold, or "
        "say that there is a single operator");
  }
  return {};
}

}  // namespace fieldprint::anchor
