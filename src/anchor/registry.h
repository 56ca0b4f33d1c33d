#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "anchor/anchor.h"
#include "base/result.h"
#include "base/sha256.h"

namespace fieldprint::anchor {

/// candidate → verified → promoted → revoked; a promoted anchor whose successor is promoted is superseded.
enum class AnchorState : std::uint8_t { kCandidate, kVerified, kPromoted, kSuperseded, kRevoked };

std::string_view name_of(AnchorState state);

/// What an anchor is wanted for.
struct Use {
  std::string tenant;     ///< empty: none in particular
  Digest model_digest{};
  std::int64_t time = 0;  ///< seconds since 1970, UTC
};

/// The lifecycle of all anchors, as a ledger's records tell it: nothing but a replay, so everybody who has the
/// leaves comes to the same state.
class Registry {
 public:
  /// Takes the next leaf. Leaves that are no anchor's or policy's record are passed over. A record that breaks a
  /// rule (an unknown key, a forged or repeated signature, a step out of order, too few approvals) changes
  /// nothing; the reason is kept for audits and given back.
  Status apply(std::uint64_t index, std::span<const std::uint8_t> leaf);
  /// Leaves taken so far: the size of the ledger whose state this is.
  std::uint64_t size() const { return size_; }

  /// Whether the anchor may begin to influence a request; the reason why not: unknown, not promoted, revoked,
  /// superseded, not valid yet or any more, for other tenants or other models.
  Status admit(const Digest& id, const Use& use) const;
  /// Whether one that was admitted may go on: not revoked and not expired. Supersession ends no request.
  Status in_force(const Digest& id, std::int64_t time) const;

 private:
  std::uint64_t size_ = 0;
};

}  // namespace fieldprint::anchor
