#pragma once

#include <string_view>

#include "anchor/policy.h"
#include "base/result.h"

namespace fieldprint::cli {

/// Reads who may do what from JSON:
///
///     {"keys": [{"key": VERIFIER KEY, "roles": ["propose", "verify", "promote", "revoke", "admin"]}, ...],
///      "thresholds": {"verify": 1, "promote": 2, "revoke": 1, "admin": 2}}
///
/// A threshold that is not given is 1. Keys and roles may come in any order. What a policy says beside that
/// is left as it is by default; whether it is sound, anchor::check says.
Result<anchor::Policy> parse_policy_file(std::string_view text);

}  // namespace fieldprint::cli
