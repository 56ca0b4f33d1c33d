#include "cli/anchor_view.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/utc_time.h"

namespace fieldprint::cli {
namespace {

using anchor::AnchorState;
using anchor::Entry;
using anchor::Registry;
using anchor::Role;
using nlohmann::json;

std::string name_in(std::string_view key_text) { return std::string(key_text.substr(0, key_text.find('+'))); }

std::vector<std::string> hex_of(const std::vector<Digest>& digests) {
  std::vector<std::string> out;
  for (const Digest& digest : digests) out.push_back(to_hex(digest));
  return out;
}

json time_or_null(std::optional<std::int64_t> time) { return time ? json(format_utc(*time)) : json(); }

/// The head of the canonical bytes, below the magic line: type, name and terms.
std::string head_of(const anchor::Anchor& anchor) {
  const auto bytes = anchor.canonical_bytes();
  const std::string text(bytes.begin(), bytes.end());
  const std::size_t begin = text.find('\n') + 1;
  return text.substr(begin, text.find("\n\n") + 1 - begin);
}

std::string approvals_of(const Registry& registry, const Entry& entry) {
  std::string out;
  if (!registry.policy()) return out;
  for (const auto& [role, keys] : entry.approvals) {
    if (keys.empty()) continue;
    std::vector<std::string> names;
    for (const std::string& key : keys) names.push_back(name_in(key));
    out += fmt::format("to {}: {} of {} keys agree ({})\n", name_of(role), keys.size(),
                       registry.policy()->threshold(role), fmt::join(names, ", "));
  }
  return out;
}

}  // namespace

std::string standing(const Registry& registry, const Entry& entry, std::int64_t now) {
  const anchor::Terms& terms = entry.anchor.terms();
  const std::int64_t latest = std::max(now, registry.latest_time());
  if (entry.state == AnchorState::kPromoted && terms.not_after && latest > *terms.not_after) return "expired";
  if (entry.state == AnchorState::kPromoted && terms.not_before && now < *terms.not_before)
    return "not yet valid";
  return std::string(name_of(entry.state));
}

std::string summary_of(const Registry& registry, const Entry& entry, std::int64_t now) {
  const anchor::Terms& terms = entry.anchor.terms();
  std::string out = fmt::format("{}  {:<13}  {:<8}", to_hex(entry.anchor.id()).substr(0, 16),
                                standing(registry, entry, now), name_of(entry.anchor.type()));
  if (!entry.anchor.name().empty()) out += fmt::format("  {}", entry.anchor.name());
  if (!terms.tenants.empty()) out += fmt::format("  for {}", fmt::join(terms.tenants, ", "));
  if (terms.not_after) out += fmt::format("  until {}", format_utc(*terms.not_after));
  return out;
}

json to_json(const Registry& registry, const Entry& entry, std::int64_t now) {
  const anchor::Anchor& anchor = entry.anchor;
  const anchor::Terms& terms = anchor.terms();
  json history = json::array();
  for (const anchor::Event& event : entry.history) {
    history.push_back({{"record", event.index},
                       {"action", name_of(event.action)},
                       {"time", format_utc(event.time)},
                       {"key", event.key}});
    if (!event.reason.empty()) history.back()["reason"] = event.reason;
  }
  json approvals = json::object();
  for (const auto& [role, keys] : entry.approvals) {
    if (!keys.empty()) approvals[std::string(name_of(role))] = keys;
  }
  return {{"id", to_hex(anchor.id())},
          {"state", name_of(entry.state)},
          {"standing", standing(registry, entry, now)},
          {"type", name_of(anchor.type())},
          {"name", anchor.name()},
          {"tenants", terms.tenants},
          {"models", hex_of(terms.models)},
          {"floor", terms.floor},
          {"ceiling", terms.ceiling},
          {"not_before", time_or_null(terms.not_before)},
          {"not_after", time_or_null(terms.not_after)},
          {"supersedes", hex_of(terms.supersedes)},
          {"superseded_by", entry.successor ? json(to_hex(*entry.successor)) : json()},
          {"approvals", approvals},
          {"history", history},
          {"text", anchor.text()}};
}

std::string description_of(const Registry& registry, const Entry& entry, std::int64_t now) {
  std::string out =
      fmt::format("id {}\nstanding {}\n", to_hex(entry.anchor.id()), standing(registry, entry, now));
  if (entry.successor) out += fmt::format("superseded by {}\n", to_hex(*entry.successor));
  out += head_of(entry.anchor);
  for (const anchor::Event& event : entry.history) {
    out +=
        fmt::format("record {}: {} by {} at {}{}\n", event.index, name_of(event.action), name_in(event.key),
                    format_utc(event.time), event.reason.empty() ? "" : ": " + event.reason);
  }
  return fmt::format("{}{}\n{}\n", out, approvals_of(registry, entry), entry.anchor.text());
}

json to_json(const anchor::Policy& policy) {
  json keys = json::array();
  for (const anchor::PolicyKey& key : policy.keys) {
    std::vector<std::string> roles;
    for (const Role role : key.roles) roles.emplace_back(name_of(role));
    keys.push_back({{"key", key.key.text()}, {"roles", roles}});
  }
  json thresholds = json::object();
  for (const Role role : anchor::kRoles) thresholds[std::string(name_of(role))] = policy.threshold(role);
  return {{"number", policy.number},
          {"digest", to_hex(digest_of(policy))},
          {"parent", to_hex(policy.parent)},
          {"ledger", policy.ledger},
          {"time", format_utc(policy.time)},
          {"single_operator", policy.single_operator},
          {"keys", keys},
          {"thresholds", thresholds}};
}

std::string description_of(const anchor::Policy& policy) {
  std::string out = fmt::format("policy {} of {}, digest {}\n", policy.number, format_utc(policy.time),
                                to_hex(digest_of(policy)));
  for (const Role role : anchor::kRoles) {
    std::vector<std::string> names;
    for (const anchor::PolicyKey& key : policy.keys) {
      if (key.may(role)) names.push_back(key.key.name());
    }
    out += fmt::format("{:<8} {} of {}: {}\n", name_of(role), policy.threshold(role), names.size(),
                       fmt::join(names, ", "));
  }
  out += policy.single_operator ? "one operator does everything\n"
                                : "who proposes an anchor cannot promote it\n";
  return out;
}

}  // namespace fieldprint::cli
