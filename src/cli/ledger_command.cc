#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/base64.h"
#include "base/bounds.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/ledger_options.h"
#include "commit/receipt_file.h"
#include "ledger/tlog_proof.h"
#include "store/audit.h"
#include "store/tile_export.h"

namespace fieldprint::cli {
namespace {

struct LedgerOptions {
  store::DataFolder place;
  std::optional<std::uint64_t> size;
  std::optional<std::uint64_t> index;
  std::string receipt;
  std::optional<std::uint64_t> from;
  std::string add;
  std::vector<std::string> keys;
  std::vector<std::string> witnesses;
  std::vector<std::string> published;
  std::string output;
  bool json = false;
};

bool present(const std::string& path) {
  std::error_code failure;
  return std::filesystem::exists(path, failure);
}

/// The checkpoint kept for --size, or the last one.
Result<std::string> kept_checkpoint(store::LedgerStore& store, std::optional<std::uint64_t> size) {
  auto note = size ? store.checkpoint_at(*size) : store.checkpoint();
  if (!note) return note.error();
  if (*note) return std::move(**note);
  if (!size)
    return caller_error(
        "the ledger has given out no checkpoint yet; `fieldprint ledger checkpoint` signs one");
  return caller_error(fmt::format(
      "the ledger has given out no checkpoint for {} leaves; without --size the last one is taken", *size));
}

int print_checkpoint(const std::string& note, bool json) {
  if (!json) {
    fmt::print("{}", note);
    return kDone;
  }
  auto parsed = ledger::parse_note(note);
  if (!parsed) return report(parsed.error());
  auto checkpoint = ledger::parse_checkpoint(parsed->text);
  if (!checkpoint) return report(checkpoint.error());
  nlohmann::json signatures = nlohmann::json::array();
  for (const ledger::NoteSignature& signature : parsed->signatures) {
    signatures.push_back({{"name", signature.key_name}, {"key_id", fmt::format("{:08x}", signature.key_id)}});
  }
  print_line({{"origin", checkpoint->origin},
              {"size", checkpoint->size},
              {"root", base64_encode(checkpoint->root)},
              {"signatures", signatures},
              {"note", note}});
  return kDone;
}

int checkpoint(const LedgerOptions& options) {
  if (!options.add.empty()) {
    if (options.witnesses.empty())
      return report(caller_error("say whose cosignatures to accept: --witness FILE"));
    auto witnesses = read_verifier_keys(options.witnesses);
    if (!witnesses) return report(witnesses.error());
    auto answer = read_text(options.add, bounds::kMaxNoteBytes);
    if (!answer) return report(answer.error());
    auto log = open_for_signing(options.place);
    if (!log) return report(log.error());
    auto cosigned = (*log)->accept_cosignatures(*answer, *witnesses);
    if (!cosigned)
      return report(
          Error{cosigned.error().kind, fmt::format("{}: {}", options.add, cosigned.error().message)});
    return print_checkpoint(*cosigned, options.json);
  }
  // Who cannot sign can still hand out what was signed.
  if (!options.size && !options.place.folder.empty() && present(options.place.signing_key())) {
    auto log = open_for_signing(options.place);
    if (!log) return report(log.error());
    auto note = (*log)->checkpoint();
    return note ? print_checkpoint(*note, options.json) : report(note.error());
  }
  auto store = open_place(options.place, store::Access::kRead);
  if (!store) return report(store.error());
  auto note = kept_checkpoint(**store, options.size);
  return note ? print_checkpoint(*note, options.json) : report(note.error());
}

nlohmann::json base64_list(const std::vector<Digest>& hashes) {
  nlohmann::json list = nlohmann::json::array();
  for (const Digest& hash : hashes) list.push_back(base64_encode(hash));
  return list;
}

int prove_consistency(store::LedgerStore& store, std::uint64_t from, std::uint64_t to) {
  auto proof = store.consistency_proof(from, to);
  if (!proof) return report(proof.error());
  auto root1 = store.root_at(from);
  if (!root1) return report(root1.error());
  auto root2 = store.root_at(to);
  if (!root2) return report(root2.error());
  print_line({{"size1", from},
              {"size2", to},
              {"root1", base64_encode(*root1)},
              {"root2", base64_encode(*root2)},
              {"proof", base64_list(*proof)}});
  return kDone;
}

/// The place of the leaf in question; that of a receipt is compared with the ledger's.
Result<std::uint64_t> index_of(store::LedgerStore& store, const LedgerOptions& options) {
  if (options.index) return *options.index;
  auto receipt = commit::read_receipt(options.receipt);
  if (!receipt) return receipt.error();
  auto expected = commit::commit_digest(receipt->body);
  if (!expected) return expected.error();
  auto stored = store.leaf_hash(receipt->leaf_index);
  if (!stored) return stored.error();
  if (*stored == *expected) return receipt->leaf_index;
  return refuted(fmt::format("record {} of this ledger is not the receipt's; it was made in another ledger",
                             receipt->leaf_index));
}

int prove_inclusion(store::LedgerStore& store, const LedgerOptions& options) {
  auto index = index_of(store, options);
  if (!index) return report(index.error());
  std::string note;
  std::uint64_t size = options.size.value_or(0);
  // Only a proof as JSON may be about a size without a checkpoint.
  if (!options.json || !options.size) {
    auto kept = kept_checkpoint(store, options.size);
    if (!kept) return report(kept.error());
    auto checkpoint = store::read_checkpoint(*kept);
    if (!checkpoint) return report(checkpoint.error());
    size = checkpoint->size;
    note = std::move(*kept);
  }
  auto proof = store.inclusion_proof(*index, size);
  if (!proof) return report(proof.error());
  if (!options.json) {
    fmt::print("{}", ledger::format_tlog_proof({{}, *index, std::move(*proof), std::move(note)}));
    return kDone;
  }
  auto leaf = store.leaf_hash(*index);
  if (!leaf) return report(leaf.error());
  auto root = store.root_at(size);
  if (!root) return report(root.error());
  print_line({{"leafIdx", *index},
              {"treeSize", size},
              {"root", base64_encode(*root)},
              {"leafHash", base64_encode(*leaf)},
              {"proof", base64_list(*proof)}});
  return kDone;
}

int prove(const LedgerOptions& options) {
  auto store = open_place(options.place, store::Access::kRead);
  if (!store) return report(store.error());
  auto now = (*store)->size();
  if (!now) return report(now.error());
  if (options.size && *options.size > *now) {
    return report(
        caller_error(fmt::format("the ledger has {} leaves, fewer than --size {}", *now, *options.size)));
  }
  if (!options.from) return prove_inclusion(**store, options);
  return prove_consistency(**store, *options.from, options.size.value_or(*now));
}

int print_audit(const LedgerOptions& options, const store::AuditReport& result, bool keys_known) {
  const bool sound = result.problem.empty();
  if (options.json) {
    nlohmann::json line = {{"sound", sound},
                           {"records", result.leaves},
                           {"checkpoints", result.checkpoints},
                           {"signatures_checked", keys_known},
                           {"problem", nullptr},
                           {"first_wrong", nullptr}};
    if (sound) line["root"] = base64_encode(result.root);
    if (!sound) line["problem"] = result.problem;
    if (result.first_wrong)
      line["first_wrong"] = {{"begin", result.first_wrong->begin}, {"end", result.first_wrong->end}};
    print_line(line);
  } else if (sound) {
    fmt::print("sound: {} records and {} checkpoints{}, root {}\n", result.leaves, result.checkpoints,
               keys_known ? "" : " (whose signatures were not checked: no --key)",
               base64_encode(result.root));
  } else {
    fmt::print("NOT SOUND: {}\n", result.problem);
  }
  return sound ? kDone : kRefuted;
}

int audit(const LedgerOptions& options) {
  std::vector<std::string> key_files = options.keys;
  if (key_files.empty() && !options.place.folder.empty() && present(options.place.public_key())) {
    key_files.push_back(options.place.public_key());
  }
  auto keys = read_verifier_keys(key_files);
  if (!keys) return report(keys.error());
  std::vector<std::string> published;
  for (const std::string& path : options.published) {
    auto note = read_text(path, bounds::kMaxNoteBytes);
    if (!note) return report(note.error());
    published.push_back(std::move(*note));
  }
  auto store = open_place(options.place, store::Access::kExamine);
  if (!store) return report(store.error());
  Progress progress("auditing", "records");
  auto result = store::audit(**store, {*keys, published, [&](std::uint64_t done, std::uint64_t total) {
                                         progress.update(static_cast<std::int64_t>(done),
                                                         static_cast<std::int64_t>(total));
                                       }});
  progress.clear();
  if (!result) return report(result.error());
  return print_audit(options, *result, !keys->empty());
}

int export_log(const LedgerOptions& options) {
  auto store = open_place(options.place, store::Access::kRead);
  if (!store) return report(store.error());
  auto note = kept_checkpoint(**store, options.size);
  if (!note) return report(note.error());
  if (Status status = ensure_folder(options.output); !status) return report(status.error());
  Progress progress("exporting", "files");
  auto done = store::export_tiles(**store, *note, options.output, [&](std::uint64_t files) {
    progress.update(static_cast<std::int64_t>(files), 0);
  });
  progress.clear();
  if (!done) return report(done.error());
  if (options.json) {
    print_line({{"output", options.output},
                {"size", done->size},
                {"old_size", done->old_size},
                {"files", done->files}});
  } else {
    fmt::print("{}: {} records, {} of them new, in {} new files\n", options.output, done->size,
               done->size - done->old_size, done->files);
  }
  return kDone;
}

using Part = int (*)(const LedgerOptions&);

CLI::App* add_part(CLI::App& ledger, Action& action, const char* name, const char* what, Part part,
                   std::shared_ptr<LedgerOptions>& options) {
  options = std::make_shared<LedgerOptions>();
  CLI::App* command = ledger.add_subcommand(name, what);
  add_place_options(*command, options->place);
  command->add_flag("--json", options->json, "one JSON object on stdout");
  command->callback([&action, options, part] { action = [options, part] { return part(*options); }; });
  return command;
}

}  // namespace

void add_ledger_command(CLI::App& app, Action& action) {
  CLI::App* ledger = app.add_subcommand("ledger", "checkpoints, proofs, audits and exports of a ledger");
  ledger->require_subcommand(1);
  std::shared_ptr<LedgerOptions> options;

  CLI::App* command = add_part(*ledger, action, "checkpoint",
                               "print the last signed checkpoint; accept cosignatures", checkpoint, options);
  command->add_option("--size", options->size, "the checkpoint that was given out for this many leaves");
  command->add_option(
      "--add", options->add,
      "file with a cosigned checkpoint, or a witness's signature lines, to be checked and kept");
  command->add_option("--witness", options->witnesses,
                      "file with the verifier key of a witness to accept; may be repeated");

  command = add_part(*ledger, action, "prove", "print a proof: inclusion as c2sp.org/tlog-proof, or as JSON",
                     prove, options);
  auto* what = command->add_option_group("what", "what to prove");
  what->add_option("--index", options->index, "that the ledger holds this leaf, counted from 0");
  what->add_option("--receipt", options->receipt, "that it holds the record of this receipt");
  what->add_option("--from", options->from, "that it continues the tree of this many leaves (always JSON)");
  what->require_option(1);
  command->add_option("--size", options->size, "leaves of the tree that the proof is about; by default all");

  add_check_proof_command(*ledger, action);

  command =
      add_part(*ledger, action, "audit",
               "recompute everything from the leaves; name the first record that is wrong", audit, options);
  command->add_option(
      "--key", options->keys,
      "file with a verifier key of the log; by default ledger.pub in --data; may be repeated");
  command->add_option(
      "--checkpoint", options->published,
      "file with a checkpoint from elsewhere that the ledger must agree with; may be repeated");

  command = add_part(*ledger, action, "export",
                     "write the log as static files (c2sp.org/tlog-tiles), or what is new of it", export_log,
                     options);
  command->add_option("-o,--output", options->output, "folder for the files")->required();
  command->add_option("--size", options->size,
                      "export the checkpoint given out for this many leaves, not the last");

  add_ledger_serve_command(*ledger, action);
}

}  // namespace fieldprint::cli
