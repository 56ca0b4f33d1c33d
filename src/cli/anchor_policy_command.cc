#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "anchor/record.h"
#include "base/bounds.h"
#include "base/file.h"
#include "base/utc_time.h"
#include "cli/anchor_office.h"
#include "cli/anchor_view.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/ledger_options.h"
#include "cli/policy_file.h"
#include "engine/anchor_office.h"
#include "ledger/key_file.h"

namespace fieldprint::cli {
namespace {

struct PolicyOptions {
  store::DataFolder place;
  std::string file;
  std::vector<std::string> keys;
  bool single_operator = false;
  bool json = false;
};

int show_policy(const PolicyOptions& options) {
  auto registry = read_registry(options.place);
  if (!registry) return report(registry.error());
  const auto& policy = registry->policy();
  if (options.json) {
    print_line(policy ? to_json(*policy) : nlohmann::json());
  } else if (policy) {
    fmt::print("{}", description_of(*policy));
  } else {
    fmt::print("no policy: the ledger's own key, {}, does everything (fieldprint anchor policy set)\n",
               registry->log().name());
  }
  return kDone;
}

int set_policy(const PolicyOptions& options) {
  auto text = read_text(options.file, bounds::kMaxPolicyFileBytes);
  if (!text) return report(text.error());
  auto policy = parse_policy_file(*text);
  if (!policy)
    return report(Error{policy.error().kind, fmt::format("{}: {}", options.file, policy.error().message)});
  std::vector<ledger::SignerKey> signers;
  for (const std::string& path : options.keys) {
    auto key = ledger::load_key_file(path);
    if (!key) return report(key.error());
    signers.push_back(std::move(*key));
  }
  // Before a ledger is begun for a policy that none accepts.
  policy->single_operator = options.single_operator;
  if (Status status = anchor::check(*policy); !status) return report(status.error());
  auto office = AnchorOffice::open(options.place, true);
  if (!office) return report(office.error());
  const anchor::Registry before = office->authority->registry();
  anchor::PolicyRecord record;
  record.policy = std::move(*policy);
  record.policy.number = before.policy() ? before.policy()->number + 1 : 1;
  record.policy.parent = before.policy_digest();
  record.policy.ledger = before.log().text();
  record.policy.time = std::max(utc_now(), before.latest_time());
  for (const ledger::SignerKey& signer : signers) anchor::sign(record, signer);
  auto index = engine::enter(*office->authority, *office->log, anchor::encode(record));
  if (!index) return report(index.error());
  if (options.json) {
    print_line(to_json(record.policy));
  } else {
    fmt::print("{}", description_of(record.policy));
  }
  return kDone;
}

int make_key(const std::string& path, const std::string& name, bool json) {
  // Before there is a key, which could not be made a second time.
  if (Status status = check_replaceable(path + ".pub"); !status) return report(status.error());
  auto key = ledger::create_key_file(path, name);
  if (!key) return report(key.error());
  const std::string text = key->verifier().text();
  if (Status status = write_file_atomically(path + ".pub", std::string_view(text + "\n")); !status)
    return report(status.error());
  if (json) {
    print_line({{"file", path}, {"public_file", path + ".pub"}, {"key", text}});
  } else {
    fmt::print("{}\n", text);
  }
  return kDone;
}

}  // namespace

void add_anchor_policy_command(CLI::App& anchor, Action& action) {
  CLI::App* policy = anchor.add_subcommand("policy", "who may do what to the ledger's anchors");
  policy->require_subcommand(1);
  auto options = std::make_shared<PolicyOptions>();
  CLI::App* show = policy->add_subcommand("show", "print the policy in force");
  CLI::App* set =
      policy->add_subcommand("set", "put another policy in force; what keys did under the last one stays");
  for (CLI::App* command : {show, set}) {
    add_office_options(*command, options->place);
    command->add_flag("--json", options->json, "one JSON object on stdout");
  }
  set->add_option("FILE", options->file, "JSON file with keys and thresholds (examples/anchors/policy.json)")
      ->required();
  set->add_option(
         "--key", options->keys,
         "signing key of an admin, as many as the policy in force asks for, or the first policy itself; "
         "may be repeated")
      ->required();
  set->add_flag(
      "--single-operator", options->single_operator,
      "one key does everything and may promote what it proposed; whoever loses it can never change that");
  show->callback([&action, options] { action = [options] { return show_policy(*options); }; });
  set->callback([&action, options] { action = [options] { return set_policy(*options); }; });
}

void add_anchor_key_command(CLI::App& anchor, Action& action) {
  struct KeyOptions {
    std::string file;
    std::string name;
    bool json = false;
  };
  auto options = std::make_shared<KeyOptions>();
  CLI::App* key = anchor.add_subcommand("key", "signing keys");
  key->require_subcommand(1);
  CLI::App* command = key->add_subcommand(
      "new", "make a signing key in FILE, for its owner's eyes only, and FILE.pub, its public half");
  command->add_option("FILE", options->file, "where to put it; nothing may be there")->required();
  command->add_option("--name", options->name, "whose it is, such as alice@example.com")->required();
  command->add_flag("--json", options->json, "one JSON object on stdout");
  command->callback([&action, options] {
    action = [options] { return make_key(options->file, options->name, options->json); };
  });
}

}  // namespace fieldprint::cli
