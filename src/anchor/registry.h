#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "anchor/anchor.h"
#include "anchor/record.h"
#include "base/result.h"
#include "base/sha256.h"

namespace fieldprint::anchor {

/// candidate → verified → promoted → revoked; an anchor whose successor is promoted is superseded.
enum class AnchorState : std::uint8_t { kCandidate, kVerified, kPromoted, kSuperseded, kRevoked };

std::string_view name_of(AnchorState state);

/// What an anchor is wanted for.
struct Use {
  std::string tenant = {};  ///< empty: none in particular
  Digest model_digest{};
  std::int64_t time = 0;  ///< seconds since 1970, UTC
};

/// A record that was accepted.
struct Event {
  std::uint64_t index = 0;  ///< of its leaf
  Role action = Role::kPropose;
  std::int64_t time = 0;
  std::string key;  ///< verifier key of who signed it
  std::string reason;
};

struct Entry {
  Anchor anchor;
  AnchorState state = AnchorState::kCandidate;
  ledger::PublicKey proposer{};
  std::map<Role, std::set<std::string>> approvals;  ///< keys that agreed to a step that takes more of them
  bool demoted = false;             ///< was promoted by the log's key, before the ledger had a policy
  std::optional<Digest> successor;  ///< of a superseded one
  std::vector<Event> history;
};

/// A record that broke a rule and changed nothing.
struct RefusedRecord {
  std::uint64_t index = 0;
  std::string reason;
};

/// The lifecycle of all anchors, as a ledger's records tell it: nothing but a replay, so everybody who has
/// the leaves comes to the same state. Until the ledger has a policy, the log's own key acts for everybody;
/// the first policy takes back what it promoted. A later policy leaves decisions as they are, and forgets
/// approvals that did not suffice yet. What one key proposed, others promote.
class Registry {
 public:
  /// Of the log with this key; records made for another one are refused.
  explicit Registry(ledger::VerifierKey log) : log_(std::move(log)) {}

  /// Takes the next leaf, number size(). Leaves that are no anchor's or policy's record are passed over. A
  /// record that breaks a rule (an unknown key, a forged or repeated signature, a step out of order) changes
  /// nothing; the reason is kept for audits and given back.
  Status apply(std::uint64_t index, std::span<const std::uint8_t> leaf);
  /// What apply would say of it as the next leaf.
  Status judge(std::span<const std::uint8_t> leaf) const;
  /// Leaves taken so far: the size of the ledger whose state this is.
  std::uint64_t size() const { return size_; }

  /// Whether the anchor may begin to influence a request; the reason why not: unknown, not promoted, revoked,
  /// superseded, not valid yet or any more, for other tenants or other models. A clock behind latest_time()
  /// does not bring back what expired; only the clock makes an anchor valid.
  Status admit(const Digest& id, const Use& use) const;
  /// Whether one that was admitted may go on: promoted, not revoked and not expired. Supersession ends no
  /// request.
  Status in_force(const Digest& id, std::int64_t time) const;
  /// How many times an anchor has left force by a record: a revocation, or the first policy.
  std::uint64_t departures() const { return departures_; }

  const ledger::VerifierKey& log() const { return log_; }
  /// The policy in force; nothing while the log's key acts alone.
  const std::optional<Policy>& policy() const { return policy_; }
  const Digest& policy_digest() const { return policy_digest_; }  ///< zeros without a policy
  /// Of the policies, and of the records that completed a promotion or a revocation.
  std::int64_t latest_time() const { return latest_time_; }
  const std::map<Digest, Entry>& entries() const { return entries_; }
  /// The first bounds::kMaxRefusedRecords of them.
  const std::vector<RefusedRecord>& refused() const { return refused_; }

  /// The entry of this id, or nothing.
  const Entry* find(const Digest& id) const;
  /// The id that begins with these hexadecimal digits, of which there are at least
  /// bounds::kMinAnchorPrefixDigits.
  Result<Digest> resolve(std::string_view prefix) const;
  /// A record for the next leaf, to be signed; `now` by the caller's clock.
  ActionRecord draft(Role action, const Digest& anchor, std::int64_t now) const;

 private:
  Status apply_record(std::uint64_t index, std::span<const std::uint8_t> leaf);
  Status apply_action(std::uint64_t index, const ActionRecord& record);
  Status apply_policy(PolicyRecord record);
  Result<ledger::PublicKey> check_signer(const ActionRecord& record) const;
  Status propose(const ActionRecord& record, const ledger::PublicKey& key);
  Status verify(Entry& entry, const ActionRecord& record);
  Status promote(Entry& entry, const ActionRecord& record, const ledger::PublicKey& key);
  Status revoke(Entry& entry, const ActionRecord& record);
  Result<bool> approve(Entry& entry, const ActionRecord& record) const;
  void supersede(const Entry& successor);
  void enact(Policy policy);
  Status check_terms(const Entry& entry, const Use& use) const;
  std::string not_promoted(const Entry& entry) const;

  ledger::VerifierKey log_;
  std::uint64_t size_ = 0;
  std::optional<Policy> policy_;
  Digest policy_digest_{};
  std::int64_t latest_time_ = 0;
  std::uint64_t departures_ = 0;
  std::map<Digest, Entry> entries_;
  std::vector<RefusedRecord> refused_;
};

}  // namespace fieldprint::anchor
