#include "cli/policy_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

namespace fieldprint::cli {
namespace {

using anchor::Role;
using Json = nlohmann::json;

Error malformed(std::string_view what) { return caller_error(fmt::format("malformed policy: {}", what)); }

Status check_members(const Json& object, std::string_view what,
                     std::initializer_list<std::string_view> known) {
  if (!object.is_object()) return malformed(fmt::format("{} must be an object", what));
  for (const auto& [name, value] : object.items()) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      return malformed(fmt::format("{} has no \"{}\"", what, name));
    }
  }
  return {};
}

Result<anchor::PolicyKey> read_key(const Json& value) {
  if (Status status = check_members(value, "a key", {"key", "roles"}); !status) return status.error();
  const auto text = value.find("key");
  const auto roles = value.find("roles");
  if (text == value.end() || !text->is_string() || roles == value.end() || !roles->is_array()) {
    return malformed("a key needs \"key\", a verifier key, and \"roles\", a list");
  }
  auto key = ledger::VerifierKey::parse(text->get_ref<const std::string&>());
  if (!key) return malformed(key.error().message);
  anchor::PolicyKey out{std::move(*key), {}};
  for (const Json& name : *roles) {
    auto role = name.is_string() ? anchor::role(name.get_ref<const std::string&>()) : anchor::role("");
    if (!role) return malformed(role.error().message);
    if (out.may(*role))
      return malformed(fmt::format("{} has the role {} twice", out.key.name(), name_of(*role)));
    out.roles.push_back(*role);
  }
  std::sort(out.roles.begin(), out.roles.end());
  return out;
}

Status read_thresholds(const Json& value, anchor::Policy& out) {
  if (!value.is_object()) return malformed("\"thresholds\" must be an object");
  for (const auto& [name, number] : value.items()) {
    auto role = anchor::role(name);
    if (!role) return malformed(role.error().message);
    if (!number.is_number_unsigned() || number.get<std::uint64_t>() > UINT32_MAX) {
      return malformed(fmt::format("the threshold of {} must be a whole number", name));
    }
    out.thresholds[static_cast<std::size_t>(*role)] = number.get<std::uint32_t>();
  }
  return {};
}

}  // namespace

Result<anchor::Policy> parse_policy_file(std::string_view text) {
  const Json root = Json::parse(text, nullptr, false);
  if (root.is_discarded()) return malformed("not valid JSON");
  if (Status status = check_members(root, "a policy", {"keys", "thresholds"}); !status) return status.error();
  anchor::Policy policy;
  const auto keys = root.find("keys");
  if (keys == root.end() || !keys->is_array()) return malformed("\"keys\" must be a list");
  for (const Json& value : *keys) {
    auto key = read_key(value);
    if (!key) return key.error();
    policy.keys.push_back(std::move(*key));
  }
  std::sort(policy.keys.begin(), policy.keys.end(),
            [](const auto& a, const auto& b) { return a.key.text() < b.key.text(); });
  const auto thresholds = root.find("thresholds");
  if (thresholds != root.end()) {
    if (Status status = read_thresholds(*thresholds, policy); !status) return status.error();
  }
  return policy;
}

}  // namespace fieldprint::cli
