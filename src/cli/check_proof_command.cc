#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/base64.h"
#include "base/bounds.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/ledger_options.h"
#include "cli/proof_file.h"
#include "ledger/merkle.h"
#include "ledger/tlog_proof.h"

namespace fieldprint::cli {
namespace {

struct CheckOptions {
  std::string file;
  std::string tlog_proof;
  std::string leaf;
  std::string leaf_hash;
  std::vector<std::string> keys;
  std::vector<std::string> witnesses;
  std::optional<std::size_t> quorum;
  bool json = false;
};

// What is malformed is reported, what does not hold is an answer.
int answer(const CheckOptions& options, const std::string& path, const Status& status,
           nlohmann::json details) {
  if (!status && status.error().kind != ErrorKind::kRefuted) {
    return report(Error{status.error().kind, fmt::format("{}: {}", path, status.error().message)});
  }
  if (options.json) {
    details["file"] = path;
    details["holds"] = status.ok();
    details["reason"] = status ? nlohmann::json() : nlohmann::json(status.error().message);
    print_line(details);
  } else if (status) {
    fmt::print("{}: holds\n", path);
  } else {
    fmt::print("{}: DOES NOT HOLD: {}\n", path, status.error().message);
  }
  return status ? kDone : kRefuted;
}

int check_json_proof(const CheckOptions& options) {
  auto text = read_text(options.file, bounds::kMaxProofFileBytes);
  if (!text) return report(text.error());
  auto proof = parse_proof_file(*text);
  return answer(options, options.file, proof ? check_proof(*proof) : Status(proof.error()),
                nlohmann::json::object());
}

Result<Digest> leaf_hash_of(const CheckOptions& options) {
  if (options.leaf.empty() == options.leaf_hash.empty()) {
    return caller_error("a tlog-proof is about one leaf: give --leaf FILE or --leaf-hash HASH");
  }
  Digest hash{};
  if (!options.leaf_hash.empty()) {
    if (from_hex(options.leaf_hash, hash)) return hash;
    const auto bytes = base64_decode(options.leaf_hash);
    if (!bytes || bytes->size() != hash.size()) {
      return caller_error("--leaf-hash takes 32 bytes as 64 hexadecimal digits or in base64");
    }
    std::copy(bytes->begin(), bytes->end(), hash.begin());
    return hash;
  }
  auto bytes = read_file(options.leaf, bounds::kMaxLeafBytes);
  if (!bytes) return bytes.error();
  return ledger::leaf_hash(*bytes);
}

int check_tlog_proof(const CheckOptions& options) {
  if (options.keys.empty())
    return report(caller_error("say whose log is trusted: --key FILE, such as ledger.pub"));
  auto leaf = leaf_hash_of(options);
  if (!leaf) return report(leaf.error());
  auto logs = read_verifier_keys(options.keys);
  if (!logs) return report(logs.error());
  auto witnesses = read_verifier_keys(options.witnesses);
  if (!witnesses) return report(witnesses.error());
  auto text = read_text(options.tlog_proof, bounds::kMaxNoteBytes);
  if (!text) return report(text.error());
  auto proof = ledger::parse_tlog_proof(*text);
  if (!proof) return answer(options, options.tlog_proof, proof.error(), {});
  // Whoever names witnesses wants them to have signed.
  const std::size_t quorum = options.quorum.value_or(witnesses->size());
  auto verified = ledger::verify_tlog_proof(*proof, *leaf, {std::move(*logs), std::move(*witnesses), quorum});
  if (!verified) return answer(options, options.tlog_proof, verified.error(), nlohmann::json::object());
  nlohmann::json cosigned = nlohmann::json::array();
  for (const ledger::Cosignature& one : verified->cosignatures) {
    cosigned.push_back({{"witness", one.witness.name()}, {"time", one.time}});
  }
  return answer(options, options.tlog_proof, {},
                {{"index", proof->index},
                 {"size", verified->checkpoint.size},
                 {"origin", verified->checkpoint.origin},
                 {"cosignatures", cosigned}});
}

}  // namespace

void add_check_proof_command(CLI::App& ledger, Action& action) {
  auto options = std::make_shared<CheckOptions>();
  CLI::App* command = ledger.add_subcommand(
      "check-proof", "check one Merkle proof offline: exit 0 it holds, 1 it does not, 2 it is malformed");
  auto* source = command->add_option_group("proof", "the proof");
  source->add_option(
      "--file", options->file,
      "JSON: {leafIdx, treeSize, root, leafHash, proof} or {size1, size2, root1, root2, proof}, bytes in "
      "base64");
  source->add_option("--tlog-proof", options->tlog_proof, "a proof as c2sp.org/tlog-proof");
  source->require_option(1);
  command->add_option("--leaf", options->leaf, "file with the leaf that a tlog-proof is about");
  command->add_option("--leaf-hash", options->leaf_hash,
                      "its RFC 9162 leaf hash instead, in hexadecimal or base64");
  command->add_option("--key", options->keys, "file with the verifier key of a trusted log; may be repeated");
  command->add_option("--witness", options->witnesses,
                      "file with the verifier key of a witness; may be repeated");
  command->add_option("--witnesses", options->quorum, "how many of them must have cosigned; by default all");
  command->add_flag("--json", options->json, "one JSON object on stdout");
  command->callback([&action, options] {
    action = [options] {
      return options->file.empty() ? check_tlog_proof(*options) : check_json_proof(*options);
    };
  });
}

}  // namespace fieldprint::cli
