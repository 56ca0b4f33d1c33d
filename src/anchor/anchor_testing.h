#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "anchor/registry.h"

/// A ledger of records about anchors, and people with keys, for tests.
namespace fieldprint::anchor::testing {

inline ledger::SignerKey key_of(std::string_view name) {
  ledger::Seed seed{};
  std::copy_n(name.begin(), std::min(name.size(), seed.size()), seed.begin());
  return *ledger::SignerKey::make(std::string(name), ledger::PrivateKey::from_seed(seed));
}

inline Anchor anchor_of(std::string_view text, Terms terms = {}) {
  return *Anchor::make(AnchorType::kPolicy, {}, text, std::move(terms));
}

inline const ledger::SignerKey& log_key() {
  static const ledger::SignerKey key = key_of("example.com/ledger");
  return key;
}

/// Ann proposes and promotes, Vic verifies, Pat and Pia promote, Rob revokes, Ada, Alf and Amy are admins.
inline Policy shared_policy() {
  const auto key = [](std::string_view name, std::vector<Role> roles) {
    return PolicyKey{key_of(name).verifier(), std::move(roles)};
  };
  Policy policy;
  policy.ledger = log_key().verifier().text();
  policy.keys = {key("ada", {Role::kAdmin}),   key("alf", {Role::kAdmin}),
                 key("amy", {Role::kAdmin}),   key("ann", {Role::kPropose, Role::kPromote}),
                 key("pat", {Role::kPromote}), key("pia", {Role::kPromote}),
                 key("rob", {Role::kRevoke}),  key("vic", {Role::kVerify})};
  policy.thresholds[static_cast<std::size_t>(Role::kPromote)] = 2;
  policy.thresholds[static_cast<std::size_t>(Role::kAdmin)] = 2;
  return policy;
}

/// A registry that is fed with records as a ledger would hold them.
class Office {
 public:
  Registry registry{log_key().verifier()};
  std::vector<Bytes> leaves;
  std::int64_t now = 1000;

  Status add(const Bytes& leaf) {
    leaves.push_back(leaf);
    return registry.apply(registry.size(), leaf);
  }

  ActionRecord record(Role action, const Anchor& anchor, const ledger::SignerKey& key) const {
    ActionRecord record = registry.draft(action, anchor.id(), now);
    if (action == Role::kPropose) record.canonical = anchor.canonical_bytes();
    if (action == Role::kRevoke) record.reason = "poisoned";
    sign(record, key);
    return record;
  }

  Status act(Role action, const Anchor& anchor, const ledger::SignerKey& key) {
    return add(encode(record(action, anchor, key)));
  }
  Status act(Role action, const Anchor& anchor, std::string_view name) {
    return act(action, anchor, key_of(name));
  }

  /// All that it takes under shared_policy.
  void promote(const Anchor& anchor) {
    CHECK(act(Role::kPropose, anchor, "ann").ok() && act(Role::kVerify, anchor, "vic").ok());
    CHECK(act(Role::kPromote, anchor, "pat").ok() && act(Role::kPromote, anchor, "pia").ok());
  }

  /// The policy as the next one, signed by these.
  PolicyRecord next(Policy policy, const std::vector<std::string_view>& admins) const {
    policy.number = registry.policy() ? registry.policy()->number + 1 : 1;
    policy.parent = registry.policy_digest();
    policy.time = now;
    PolicyRecord record{std::move(policy), {}};
    for (const std::string_view admin : admins) sign(record, key_of(admin));
    return record;
  }
  Status set(Policy policy, const std::vector<std::string_view>& admins) {
    return add(encode(next(std::move(policy), admins)));
  }

  AnchorState state(const Anchor& anchor) const { return registry.find(anchor.id())->state; }
  Status admit(const Anchor& anchor, const Use& use = {}) const { return registry.admit(anchor.id(), use); }
};

/// An office whose ledger begins with shared_policy.
inline Office shared_office() {
  Office office;
  CHECK(office.set(shared_policy(), {"ada", "alf"}).ok());
  return office;
}

}  // namespace fieldprint::anchor::testing
