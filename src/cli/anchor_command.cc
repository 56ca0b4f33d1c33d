#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/bounds.h"
#include "base/utc_time.h"
#include "cli/anchor_office.h"
#include "cli/anchor_view.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "engine/anchor_office.h"
#include "tokenizer/chat_template.h"
#include "weights/model_file.h"

namespace fieldprint::cli {
namespace {

using anchor::Role;

struct AnchorOptions {
  store::DataFolder place;
  std::string key;
  std::string file;
  std::string id;
  std::string type = "policy";
  std::string name;
  std::vector<std::string> models;
  std::vector<std::string> supersedes;
  std::string not_before;
  std::string not_after;
  anchor::Terms terms;
  std::string model;
  std::int64_t max_anchor_tokens = bounds::kMaxAnchorTokens;
  std::string reason;
  bool canonical = false;
  bool json = false;
};

int print_entry(const AnchorOptions& options, const anchor::Registry& registry, const Digest& id) {
  const anchor::Entry& entry = *registry.find(id);
  if (options.json) {
    print_line(to_json(registry, entry, utc_now()));
  } else {
    fmt::print("{}\n", summary_of(registry, entry, utc_now()));
  }
  return kDone;
}

/// Signs, enters and shows the outcome.
int act(const AnchorOptions& options, AnchorOffice& office, anchor::ActionRecord record) {
  auto signer = office.signer(options.key);
  if (!signer) return report(signer.error());
  anchor::sign(record, *signer);
  auto index = engine::enter(*office.authority, *office.log, anchor::encode(record));
  if (!index) return report(index.error());
  const anchor::Registry now = office.authority->registry();
  const anchor::Entry& entry = *now.find(record.anchor);
  const auto agreed = entry.approvals.find(record.action);
  if (!options.json && agreed != entry.approvals.end() && !agreed->second.empty()) {
    fmt::print("{} of {} keys agree to {}\n", agreed->second.size(), now.policy()->threshold(record.action),
               name_of(record.action));
  }
  return print_entry(options, now, record.anchor);
}

Result<std::optional<std::int64_t>> read_time(const std::string& text, const char* option) {
  if (text.empty()) return std::optional<std::int64_t>();
  const auto time = parse_utc(text);
  if (!time) return caller_error(fmt::format("{} takes a time in UTC such as 2026-11-25T21:14:28Z", option));
  return time;
}

Result<anchor::Anchor> make_anchor(const AnchorOptions& options, const anchor::Registry& registry) {
  auto type = anchor::anchor_type(options.type);
  if (!type) return type.error();
  auto plain = anchor::Anchor::load(options.file, *type);
  if (!plain) return plain.error();
  anchor::Terms terms = options.terms;
  for (const std::string& model : options.models) {
    terms.models.emplace_back();
    if (!from_hex(model, terms.models.back())) {
      return caller_error(
          fmt::format("--model takes a model's digest (fieldprint model info), not '{}'", model));
    }
  }
  for (const std::string& prefix : options.supersedes) {
    auto id = registry.resolve(prefix);
    if (!id) return id.error();
    terms.supersedes.push_back(*id);
  }
  auto begin = read_time(options.not_before, "--not-before");
  if (!begin) return begin.error();
  auto end = read_time(options.not_after, "--not-after");
  if (!end) return end.error();
  terms.not_before = *begin;
  terms.not_after = *end;
  const bool described = terms != anchor::Terms() || !options.name.empty();
  const bool has_own = plain->terms() != anchor::Terms() || !plain->name().empty() || plain->type() != *type;
  if (!described) return plain;
  if (has_own) {
    return caller_error(
        fmt::format("{} holds an anchor's canonical bytes; type, name and terms are in them", options.file));
  }
  return anchor::Anchor::make(*type, options.name, plain->text(), std::move(terms));
}

int propose(const AnchorOptions& options) {
  auto office = AnchorOffice::open(options.place, true);
  if (!office) return report(office.error());
  const anchor::Registry registry = office->authority->registry();
  auto anchor = make_anchor(options, registry);
  if (!anchor) return report(anchor.error());
  anchor::ActionRecord record = registry.draft(Role::kPropose, anchor->id(), utc_now());
  record.canonical = anchor->canonical_bytes();
  return act(options, *office, std::move(record));
}

/// Whether the model takes the anchor and has room for it.
Status check_with_model(const AnchorOptions& options, const anchor::Anchor& anchor) {
  auto file = weights::ModelFile::open(options.model);
  if (!file) return file.error();
  const std::vector<Digest>& models = anchor.terms().models;
  if (!models.empty() && std::find(models.begin(), models.end(), (*file)->digest()) == models.end()) {
    return refuted(fmt::format("the anchor is not for the model {}", to_hex((*file)->digest())));
  }
  auto tokenizer = tokenizer::Tokenizer::make((*file)->vocabulary());
  if (!tokenizer) return tokenizer.error();
  auto rendered = tokenizer::render_raw(**tokenizer, anchor.text(), "");
  if (!rendered) return rendered.error();
  if (std::cmp_less_equal(rendered->anchors.size(), options.max_anchor_tokens)) return {};
  return refuted(fmt::format("the anchor has {} tokens, more than the {} allowed (--max-anchor-tokens)",
                             rendered->anchors.size(), options.max_anchor_tokens));
}

/// Whether what is asked about is what the ledger holds, and may still be bound.
Status check_entry(const AnchorOptions& options, const anchor::Entry& entry) {
  if (entry.state == anchor::AnchorState::kRevoked) {
    return refuted(fmt::format("the anchor was revoked: {}", entry.history.back().reason));
  }
  if (options.file.empty()) return {};
  auto file = anchor::Anchor::load(options.file, entry.anchor.type());
  if (!file) return file.error();
  if (file->text() == entry.anchor.text()) return {};
  return refuted(fmt::format("{} is not the anchor's text; one of them was altered", options.file));
}

int verify(const AnchorOptions& options) {
  auto office = AnchorOffice::open(options.place, false);
  if (!office) return report(office.error());
  const anchor::Registry registry = office->authority->registry();
  auto id = registry.resolve(options.id);
  if (!id) return report(id.error());
  const anchor::Entry& entry = *registry.find(*id);
  if (Status status = check_entry(options, entry); !status) return report(status.error());
  if (!options.model.empty()) {
    if (Status status = check_with_model(options, entry.anchor); !status) return report(status.error());
  }
  return act(options, *office, registry.draft(Role::kVerify, *id, utc_now()));
}

int promote_or_revoke(const AnchorOptions& options, Role role) {
  auto office = AnchorOffice::open(options.place, false);
  if (!office) return report(office.error());
  const anchor::Registry registry = office->authority->registry();
  auto id = registry.resolve(options.id);
  if (!id) return report(id.error());
  anchor::ActionRecord record = registry.draft(role, *id, utc_now());
  record.reason = options.reason;
  return act(options, *office, std::move(record));
}

int list(const AnchorOptions& options) {
  auto registry = read_registry(options.place);
  if (!registry) return report(registry.error());
  for (const auto& [id, entry] : registry->entries()) print_entry(options, *registry, id);
  for (const anchor::RefusedRecord& refused : registry->refused()) {
    fmt::print(stderr, "record {} was passed over: {}\n", refused.index, refused.reason);
  }
  return kDone;
}

int show(const AnchorOptions& options) {
  auto registry = read_registry(options.place);
  if (!registry) return report(registry.error());
  auto id = registry->resolve(options.id);
  if (!id) return report(id.error());
  const anchor::Entry& entry = *registry->find(*id);
  if (options.canonical) {
    const auto bytes = entry.anchor.canonical_bytes();
    std::fwrite(bytes.data(), 1, bytes.size(), stdout);
  } else if (options.json) {
    print_line(to_json(*registry, entry, utc_now()));
  } else {
    fmt::print("{}", description_of(*registry, entry, utc_now()));
  }
  return kDone;
}

using Part = int (*)(const AnchorOptions&);
using SharedOptions = std::shared_ptr<AnchorOptions>;

CLI::App* add_part(CLI::App& anchor, Action& action, const char* name, const char* what, Part part,
                   SharedOptions& options) {
  options = std::make_shared<AnchorOptions>();
  CLI::App* command = anchor.add_subcommand(name, what);
  add_office_options(*command, options->place);
  command->add_flag("--json", options->json, "one JSON object a line on stdout");
  command->callback([&action, options, part] { action = [options, part] { return part(*options); }; });
  return command;
}

/// Of the commands that sign.
void add_key_option(CLI::App& command, AnchorOptions& options) {
  command.add_option(
      "--key", options.key,
      "signing key (fieldprint anchor key new); by default the ledger's own, which acts while there is "
      "no policy");
}

void add_id(CLI::App& command, AnchorOptions& options) {
  command.add_option("ID", options.id, "the anchor's id, or how it begins: at least 8 digits")->required();
}

void add_propose_command(CLI::App& anchor, Action& action) {
  SharedOptions options;
  CLI::App* command = add_part(anchor, action, "propose", "enter an anchor as a candidate", propose, options);
  command->add_option("FILE", options->file, "its text, or its canonical bytes (show --canonical)")
      ->required();
  add_key_option(*command, *options);
  command->add_option("--type", options->type, "policy, identity or memory");
  command->add_option("--name", options->name, "one line");
  command->add_option("--tenant", options->terms.tenants, "for this tenant only; may be repeated");
  command->add_option("--model", options->models, "digest of a model that it is for only; may be repeated");
  command->add_option("--floor", options->terms.floor, "least share of attention");
  command->add_option("--ceiling", options->terms.ceiling, "largest share of attention");
  command->add_option("--not-before", options->not_before, "not valid before, such as 2026-11-25T21:14:28Z");
  command->add_option("--not-after", options->not_after, "not valid after");
  command->add_option("--supersedes", options->supersedes,
                      "id of an anchor whose place it takes when it is promoted; may be repeated");
}

}  // namespace

void add_anchor_command(CLI::App& app, Action& action) {
  CLI::App* anchor =
      app.add_subcommand("anchor", "the lifecycle of anchors: candidate, verified, promoted, revoked");
  anchor->require_subcommand(1);
  SharedOptions options;
  add_propose_command(*anchor, action);

  CLI::App* command =
      add_part(*anchor, action, "verify", "check a candidate and say that it is sound", verify, options);
  add_id(*command, *options);
  add_key_option(*command, *options);
  command->add_option("--file", options->file, "text file that must be what the anchor says");
  command->add_option("-m,--model", options->model, "model file (.fpm) that must take it");
  command
      ->add_option("--max-anchor-tokens", options->max_anchor_tokens, "longest anchor accepted with --model")
      ->check(CLI::Range(std::int64_t{1}, bounds::kMaxContext));

  command = add_part(
      *anchor, action, "promote", "agree that a verified anchor may be bound",
      [](const AnchorOptions& o) { return promote_or_revoke(o, Role::kPromote); }, options);
  add_id(*command, *options);
  add_key_option(*command, *options);

  command = add_part(
      *anchor, action, "revoke", "declare an anchor bad, for good",
      [](const AnchorOptions& o) { return promote_or_revoke(o, Role::kRevoke); }, options);
  add_id(*command, *options);
  add_key_option(*command, *options);
  command->add_option("--reason", options->reason, "why, in one line")->required();

  add_part(*anchor, action, "list", "every anchor that the ledger knows", list, options);

  command = add_part(*anchor, action, "show", "one anchor, with the records that brought it where it is",
                     show, options);
  add_id(*command, *options);
  command->add_flag("--canonical", options->canonical, "its canonical bytes, whose SHA-256 is the id");

  add_anchor_policy_command(*anchor, action);
  add_anchor_key_command(*anchor, action);
}

}  // namespace fieldprint::cli
