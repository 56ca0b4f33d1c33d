#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/sha256.h"

namespace fieldprint::anchor {

/// For whom, for which models, how strongly and when an anchor may be bound, and what it takes the place of.
/// Part of its identity. Lists are in ascending order, without repeats.
struct Terms {
  std::vector<std::string> tenants;        ///< empty: everybody
  std::vector<Digest> models;              ///< model digests; empty: every model
  float floor = 0;                         ///< least share of attention, [0, 1)
  float ceiling = 1;                       ///< largest share, [floor, 1]
  std::optional<std::int64_t> not_before;  ///< in force from this second on (since 1970, UTC)
  std::optional<std::int64_t> not_after;   ///< and up to this one
  std::vector<Digest> supersedes;          ///< anchors whose place it takes when it is promoted
  bool operator==(const Terms&) const = default;
};

/// The same terms with lists in order, or why they cannot be an anchor's.
Result<Terms> checked(Terms terms);

/// The lines of an anchor's head that state terms, in this order and each only where it says something:
///
///     tenant NAME\n             for each
///     model HEX\n               for each
///     floor NUMBER\n            the shortest decimal that reads back to the same binary32
///     ceiling NUMBER\n
///     not-before TIME\n         RFC 3339, UTC, seconds: 2026-11-25T21:14:28Z
///     not-after TIME\n
///     supersedes HEX\n          for each
std::string format_terms(const Terms& terms);

/// Takes such lines off the front of `rest`, as far as there are any. Whether they are canonical shows when
/// they are formatted again.
Result<Terms> take_terms(std::string_view& rest);

}  // namespace fieldprint::anchor
