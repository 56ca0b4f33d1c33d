#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/sha256.h"
#include "ledger/signed_note.h"

namespace fieldprint::anchor {

/// What a key may do. All but the last are also what is done to an anchor.
enum class Role : std::uint8_t { kPropose, kVerify, kPromote, kRevoke, kAdmin };
inline constexpr std::array kRoles = {Role::kPropose, Role::kVerify, Role::kPromote, Role::kRevoke,
                                      Role::kAdmin};

std::string_view name_of(Role role);  ///< "propose", "verify", "promote", "revoke", "admin"
Result<Role> role(std::string_view name);

struct PolicyKey {
  ledger::VerifierKey key;
  std::vector<Role> roles;  ///< ascending, at least one
  bool may(Role role) const;
  bool operator==(const PolicyKey&) const = default;
};

/// Who may do what to a ledger's anchors. Each policy names the one that it follows.
struct Policy {
  std::uint64_t number = 1;
  Digest parent{};               ///< digest of the policy before; zeros for the first
  std::string ledger;            ///< verifier key of the log
  std::int64_t time = 0;         ///< seconds since 1970, UTC
  bool single_operator = false;  ///< one key does everything, and may promote what it proposed
  std::vector<PolicyKey> keys;   ///< in the order of their texts
  /// How many different keys each role takes; of proposals and single operators always one.
  std::array<std::uint32_t, kRoles.size()> thresholds = {1, 1, 1, 1, 1};

  std::uint32_t threshold(Role role) const { return thresholds[static_cast<std::size_t>(role)]; }
  const PolicyKey* find(std::string_view key_text) const;
  std::size_t count(Role role) const;
  bool operator==(const Policy&) const = default;
};

/// Refuses a policy under which something could not be done at all, one lost admin key would lock everybody
/// out, one person could hold two keys' votes (the same public key twice), or a key proves nothing.
Status check(const Policy& policy);

}  // namespace fieldprint::anchor
