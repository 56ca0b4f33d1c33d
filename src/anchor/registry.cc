#include "anchor/registry.h"

#include <algorithm>
#include <utility>

#include "base/bounds.h"
#include "base/utc_time.h"
#include "cbor/cbor.h"

namespace fieldprint::anchor {
namespace {

std::string short_id(const Digest& id) { return to_hex(id).substr(0, 12); }

Error refuse(std::string message) { return caller_error(std::move(message)); }

std::string_view key_name(std::string_view key_text) { return key_text.substr(0, key_text.find('+')); }

Status verify_signature(const ledger::VerifierKey& key, std::string_view message, const Bytes& signature) {
  if (key.verifies(message, signature)) return {};
  return refuse(fmt::format("the signature by {} does not verify", key.name()));
}

}  // namespace

std::string_view name_of(AnchorState state) {
  switch (state) {
    case AnchorState::kCandidate:
      return "candidate";
    case AnchorState::kVerified:
      return "verified";
    case AnchorState::kPromoted:
      return "promoted";
    case AnchorState::kSuperseded:
      return "superseded";
    case AnchorState::kRevoked:
      return "revoked";
  }
  CHECK(false, "no such state: {}", static_cast<int>(state));
  return {};
}

Status Registry::apply(std::uint64_t index, std::span<const std::uint8_t> leaf) {
  CHECK(index == size_, "leaf {} after {} leaves", index, size_);
  ++size_;
  Status status = apply_record(index, leaf);
  if (!status && std::cmp_less(refused_.size(), bounds::kMaxRefusedRecords)) {
    refused_.push_back({index, status.error().message});
  }
  return status;
}

Status Registry::judge(std::span<const std::uint8_t> leaf) const {
  Registry copy = *this;
  return copy.apply(size_, leaf);
}

Status Registry::apply_record(std::uint64_t index, std::span<const std::uint8_t> leaf) {
  const std::string_view kind = cbor::text_under("record", leaf);
  if (kind == "anchor") {
    auto record = decode_action(leaf);
    return record ? apply_action(index, *record) : Status(record.error());
  }
  if (kind == "policy") {
    auto record = decode_policy(leaf);
    return record ? apply_policy(std::move(*record)) : Status(record.error());
  }
  return {};
}

// The key that signed the record, which may do what it does.
Result<ledger::PublicKey> Registry::check_signer(const ActionRecord& record) const {
  if (record.ledger != log_.text()) {
    return refuse(
        fmt::format("the record was made for the ledger of {}, not for this one", key_name(record.ledger)));
  }
  if (record.policy != policy_digest_) {
    return refuse("the record was signed under another policy than the one in force; sign it again");
  }
  const ledger::VerifierKey* key = record.key == log_.text() ? &log_ : nullptr;
  if (policy_) {
    const PolicyKey* entitled = policy_->find(record.key);
    if (entitled == nullptr || !entitled->may(record.action)) {
      return refuse(
          fmt::format("the policy in force does not let {} {} anchors; `fieldprint anchor policy show` names "
                      "those it does",
                      key_name(record.key), name_of(record.action)));
    }
    key = &entitled->key;
  }
  if (key == nullptr) {
    return refuse(
        fmt::format("{} may do nothing here: while a ledger has no policy, its own key acts alone "
                    "(fieldprint anchor policy set)",
                    key_name(record.key)));
  }
  if (record.time > kLastUtcSecond) return refuse("the record's time is after the year 9999");
  if (Status status = verify_signature(*key, signed_message(record), record.signature); !status)
    return status.error();
  return key->key();
}

Status Registry::apply_action(std::uint64_t index, const ActionRecord& record) {
  auto key = check_signer(record);
  if (!key) return key.error();
  if (record.action == Role::kPropose) {
    if (Status status = propose(record, *key); !status) return status;
  }
  const auto found = entries_.find(record.anchor);
  if (found == entries_.end()) {
    return refuse(fmt::format("this ledger knows no anchor {}; propose it first", short_id(record.anchor)));
  }
  Entry& entry = found->second;
  Status status;
  if (record.action == Role::kVerify) status = verify(entry, record);
  if (record.action == Role::kPromote) status = promote(entry, record, *key);
  if (record.action == Role::kRevoke) status = revoke(entry, record);
  if (!status) return status;
  entry.history.push_back({index, record.action, record.time, record.key, record.reason});
  // Only decisions move time on: a key that may but propose or verify cannot.
  const bool promoted = record.action == Role::kPromote && entry.state == AnchorState::kPromoted;
  const bool revoked = record.action == Role::kRevoke && entry.state == AnchorState::kRevoked;
  if (promoted || revoked) latest_time_ = std::max(latest_time_, record.time);
  return {};
}

Status Registry::propose(const ActionRecord& record, const ledger::PublicKey& key) {
  auto anchor = Anchor::parse(record.canonical);
  if (!anchor) return anchor.error();
  if (anchor->id() != record.anchor) return refuse("the proposed bytes are not those of the anchor named");
  if (const Entry* known = find(record.anchor)) {
    return refuse(fmt::format("anchor {} was proposed before and is {}", short_id(record.anchor),
                              name_of(known->state)));
  }
  for (const Digest& id : anchor->terms().supersedes) {
    if (find(id) == nullptr)
      return refuse(fmt::format("it supersedes {}, which this ledger does not know", to_hex(id)));
  }
  entries_.emplace(record.anchor, Entry{.anchor = std::move(*anchor),
                                        .state = AnchorState::kCandidate,
                                        .proposer = key,
                                        .approvals = {},
                                        .demoted = false,
                                        .successor = {},
                                        .history = {}});
  return {};
}

// Counts the key's word; true if there are enough for the step.
Result<bool> Registry::approve(Entry& entry, const ActionRecord& record) const {
  std::set<std::string>& keys = entry.approvals[record.action];
  if (!keys.insert(record.key).second) {
    return refuse(fmt::format("{} has agreed already to {} {}; it takes {} different keys",
                              key_name(record.key), name_of(record.action), short_id(record.anchor),
                              policy_ ? policy_->threshold(record.action) : 1));
  }
  const bool enough = !policy_ || keys.size() >= policy_->threshold(record.action);
  if (enough) keys.clear();
  return enough;
}

Status Registry::verify(Entry& entry, const ActionRecord& record) {
  if (entry.state != AnchorState::kCandidate) {
    return refuse(fmt::format("anchor {} is {}; only a candidate can be verified", short_id(record.anchor),
                              name_of(entry.state)));
  }
  auto enough = approve(entry, record);
  if (!enough) return enough.error();
  if (*enough) entry.state = AnchorState::kVerified;
  return {};
}

Status Registry::promote(Entry& entry, const ActionRecord& record, const ledger::PublicKey& key) {
  if (entry.state != AnchorState::kVerified) {
    return refuse(fmt::format("anchor {} is {}; only a verified one can be promoted", short_id(record.anchor),
                              name_of(entry.state)));
  }
  const bool alone = !policy_ || policy_->single_operator;
  if (!alone && key == entry.proposer) {
    return refuse(fmt::format("{} proposed anchor {} and so cannot promote it; another promote key must",
                              key_name(record.key), short_id(record.anchor)));
  }
  auto enough = approve(entry, record);
  if (!enough) return enough.error();
  if (!*enough) return {};
  entry.state = AnchorState::kPromoted;
  entry.demoted = false;
  supersede(entry);
  return {};
}

Status Registry::revoke(Entry& entry, const ActionRecord& record) {
  if (entry.state == AnchorState::kRevoked) {
    return refuse(fmt::format("anchor {} is revoked already", short_id(record.anchor)));
  }
  auto enough = approve(entry, record);
  if (!enough) return enough.error();
  if (!*enough) return {};
  if (entry.state == AnchorState::kPromoted || entry.state == AnchorState::kSuperseded) ++departures_;
  entry.state = AnchorState::kRevoked;
  return {};
}

// All that the successor takes the place of, and all that those would have taken the place of.
void Registry::supersede(const Entry& successor) {
  std::vector<Digest> waiting = successor.anchor.terms().supersedes;
  std::set<Digest> seen(waiting.begin(), waiting.end());
  while (!waiting.empty()) {
    Entry& entry = entries_.at(waiting.back());
    waiting.pop_back();
    if (entry.state != AnchorState::kRevoked && entry.state != AnchorState::kSuperseded) {
      entry.state = AnchorState::kSuperseded;
      entry.successor = successor.anchor.id();
    }
    for (const Digest& id : entry.anchor.terms().supersedes) {
      if (seen.insert(id).second) waiting.push_back(id);
    }
  }
}

Status Registry::apply_policy(PolicyRecord record) {
  Policy& next = record.policy;
  if (next.ledger != log_.text()) {
    return refuse(
        fmt::format("the policy was made for the ledger of {}, not for this one", key_name(next.ledger)));
  }
  const std::uint64_t number = policy_ ? policy_->number + 1 : 1;
  if (next.number != number || next.parent != policy_digest_) {
    return refuse(
        fmt::format("the next policy has number {} and follows {}; this one has number {} and follows {}",
                    number, short_id(policy_digest_), next.number, short_id(next.parent)));
  }
  if (Status status = check(next); !status) return status;
  const Policy& authority = policy_ ? *policy_ : next;
  const std::string message = signed_message(next);
  std::set<std::string> signers;
  for (const KeySignature& signature : record.signatures) {
    const PolicyKey* key = authority.find(signature.key);
    if (key == nullptr || !key->may(Role::kAdmin)) {
      return refuse(fmt::format("{} is no admin of the policy {}", key_name(signature.key),
                                policy_ ? "before" : "itself"));
    }
    if (Status status = verify_signature(key->key, message, signature.signature); !status) return status;
    signers.insert(signature.key);
  }
  if (signers.size() < authority.threshold(Role::kAdmin)) {
    return refuse(fmt::format("the policy is signed by {} of the {} admins that the policy {} asks for",
                              signers.size(), authority.threshold(Role::kAdmin),
                              policy_ ? "before" : "itself"));
  }
  latest_time_ = std::max(latest_time_, next.time);
  enact(std::move(next));
  return {};
}

void Registry::enact(Policy policy) {
  const bool first = !policy_;
  policy_digest_ = digest_of(policy);
  policy_ = std::move(policy);
  for (auto& [id, entry] : entries_) {
    entry.approvals.clear();
    if (!first || entry.state == AnchorState::kRevoked) continue;
    if (entry.state == AnchorState::kPromoted || entry.state == AnchorState::kSuperseded) {
      entry.demoted = true;
      entry.successor.reset();
      ++departures_;
    }
    entry.state = AnchorState::kCandidate;
  }
}

std::string Registry::not_promoted(const Entry& entry) const {
  const std::string id = short_id(entry.anchor.id());
  switch (entry.state) {
    case AnchorState::kRevoked:
      return fmt::format("anchor {} was revoked: {}", id, entry.history.back().reason);
    case AnchorState::kSuperseded:
      return fmt::format("anchor {} is superseded by {}; bind that one", id, to_hex(*entry.successor));
    default:
      break;
  }
  if (entry.demoted) {
    return fmt::format(
        "anchor {} was promoted before this ledger had a policy; have it verified and promoted by the "
        "policy's keys (fieldprint anchor verify, promote)",
        id);
  }
  return fmt::format("anchor {} is a {}, not promoted; have it {} (fieldprint anchor {})", id,
                     name_of(entry.state) == "verified" ? "verified one" : "candidate",
                     entry.state == AnchorState::kVerified ? "promoted" : "verified and promoted",
                     entry.state == AnchorState::kVerified ? "promote" : "verify, promote");
}

Status Registry::check_terms(const Entry& entry, const Use& use) const {
  const Terms& terms = entry.anchor.terms();
  const std::string id = short_id(entry.anchor.id());
  if (terms.not_before && use.time < *terms.not_before) {
    return refuse(fmt::format("anchor {} is not valid before {}", id, format_utc(*terms.not_before)));
  }
  const bool for_tenant =
      terms.tenants.empty() || std::binary_search(terms.tenants.begin(), terms.tenants.end(), use.tenant);
  if (!for_tenant) {
    return refuse(
        use.tenant.empty()
            ? fmt::format("anchor {} is for certain tenants only; say for whom you ask (--tenant)", id)
            : fmt::format("anchor {} is not for the tenant {}", id, use.tenant));
  }
  const bool for_model =
      terms.models.empty() || std::binary_search(terms.models.begin(), terms.models.end(), use.model_digest);
  if (!for_model)
    return refuse(fmt::format("anchor {} is not for the model {}", id, to_hex(use.model_digest)));
  return {};
}

Status Registry::admit(const Digest& id, const Use& use) const {
  const Entry* entry = find(id);
  if (entry == nullptr) {
    return refuse(fmt::format(
        "this ledger knows no anchor {}: it was altered, or never proposed here (fieldprint anchor propose)",
        to_hex(id)));
  }
  if (entry->state != AnchorState::kPromoted) return refuse(not_promoted(*entry));
  if (Status status = in_force(id, use.time); !status) return status;
  return check_terms(*entry, use);
}

Status Registry::in_force(const Digest& id, std::int64_t time) const {
  const Entry* entry = find(id);
  if (entry == nullptr) return refuse(fmt::format("this ledger knows no anchor {}", to_hex(id)));
  if (entry->state != AnchorState::kPromoted && entry->state != AnchorState::kSuperseded) {
    return refuse(not_promoted(*entry));
  }
  const auto end = entry->anchor.terms().not_after;
  if (!end || std::max(time, latest_time_) <= *end) return {};
  return refuse(fmt::format("anchor {} expired at {}; have another one proposed that supersedes it",
                            short_id(id), format_utc(*end)));
}

const Entry* Registry::find(const Digest& id) const {
  const auto found = entries_.find(id);
  return found == entries_.end() ? nullptr : &found->second;
}

Result<Digest> Registry::resolve(std::string_view prefix) const {
  const bool digits = prefix.size() <= 64 && std::all_of(prefix.begin(), prefix.end(), [](char c) {
                        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
                      });
  if (!digits || std::cmp_less(prefix.size(), bounds::kMinAnchorPrefixDigits)) {
    return refuse(
        fmt::format("'{}' is no anchor's id: expected at least {} of its hexadecimal digits in lower case",
                    prefix, bounds::kMinAnchorPrefixDigits));
  }
  Digest lowest{};
  std::string padded(prefix);
  padded.resize(64, '0');
  CHECK(from_hex(padded, lowest));
  const auto begins = [&](const auto& place) {
    return place != entries_.end() && to_hex(place->first).starts_with(prefix);
  };
  const auto found = entries_.lower_bound(lowest);
  if (!begins(found)) return refuse(fmt::format("this ledger knows no anchor {}", prefix));
  if (begins(std::next(found)))
    return refuse(fmt::format("several anchors begin with {}; give more digits", prefix));
  return found->first;
}

ActionRecord Registry::draft(Role action, const Digest& anchor, std::int64_t now) const {
  ActionRecord record;
  record.action = action;
  record.anchor = anchor;
  record.time = std::max(now, latest_time_);
  record.policy = policy_digest_;
  record.ledger = log_.text();
  return record;
}

}  // namespace fieldprint::anchor
