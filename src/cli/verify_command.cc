#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "backend/select.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/ledger_options.h"
#include "commit/receipt_file.h"
#include "verify/verify.h"

namespace fieldprint::cli {
namespace {

struct VerifyOptions {
  std::vector<std::string> receipts;
  std::string model;
  std::string backend;
  int threads = 0;
  std::optional<std::string> kv;
  std::vector<std::string> keys;
  bool json = false;
};

void print_json(const std::string& path, const verify::Report& result) {
  nlohmann::json checks = nlohmann::json::array();
  for (const commit::Check& check : result.checks) {
    checks.push_back({{"name", check.name}, {"ok", check.ok}, {"detail", check.detail}});
  }
  const nlohmann::json line = {
      {"receipt", path},
      {"verified", result.verified},
      {"checks", checks},
      {"tokens_replayed", result.tokens_replayed},
      {"tokens_per_s",
       result.seconds > 0 ? static_cast<double>(result.tokens_replayed) / result.seconds : 0}};
  print_line(line);
}

void print_text(const std::string& path, const verify::Report& result, std::string_view backend,
                bool key_given) {
  if (const commit::Check* failure = result.first_failure()) {
    fmt::print("{}: DOES NOT VERIFY\n", path);
    for (const commit::Check& check : result.checks) {
      if (!check.ok)
        fmt::print("  {} {}: {}\n", &check == failure ? "first:" : "also: ", check.name, check.detail);
    }
    return;
  }
  fmt::print("{}: verified: {} checks, {} tokens replayed on {} at {:.0f}/s{}\n", path, result.checks.size(),
             result.tokens_replayed, backend, static_cast<double>(result.tokens_replayed) / result.seconds,
             key_given ? "" : "; whose ledger signed it was not asked (--key)");
}

int verify_receipts(const VerifyOptions& options) {
  if (options.kv && options.receipts.size() > 1) {
    return report(caller_error("--kv holds the blocks of one answer; give its receipt alone"));
  }
  auto backend = backend::select_backend(options.backend, options.threads);
  if (!backend) return report(backend.error());
  verify::Options settings;
  auto keys = read_verifier_keys(options.keys);
  if (!keys) return report(keys.error());
  settings.trusted = std::move(*keys);
  if (options.kv) {
    auto kv = read_file(*options.kv, std::int64_t{1} << 40);
    if (!kv) return report(kv.error());
    settings.kv = std::move(*kv);
  }
  auto file = weights::ModelFile::open(options.model);
  if (!file) return report(file.error());
  auto tokenizer = tokenizer::Tokenizer::make((*file)->vocabulary());
  if (!tokenizer) return report(tokenizer.error());
  int exit_code = kDone;
  for (const std::string& path : options.receipts) {
    auto receipt = commit::read_receipt(path);
    if (!receipt) {
      exit_code = std::max(exit_code, report(receipt.error()));
      continue;
    }
    Progress progress("replaying", "tokens");
    settings.progress = [&](std::int64_t done, std::int64_t total) { progress.update(done, total); };
    auto result = verify::verify(*receipt, **file, **tokenizer, **backend, settings);
    progress.clear();
    if (!result) {
      exit_code = std::max(exit_code, report(result.error()));
      continue;
    }
    if (options.json) {
      print_json(path, *result);
    } else {
      print_text(path, *result, (*backend)->name(), !settings.trusted.empty());
    }
    if (!result->verified) exit_code = std::max(exit_code, kRefuted);
  }
  return exit_code;
}

}  // namespace

void add_verify_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<VerifyOptions>();
  CLI::App* command =
      app.add_subcommand("verify", "re-execute receipts and name the first thing that differs");
  command->add_option("RECEIPT", options->receipts, "receipt files")->required();
  command->add_option("-m,--model", options->model, "model file (.fpm)")->required();
  command->add_option("--backend", options->backend,
                      "scalar, avx2, avx512, amx or cuda; the verdict is the same");
  command->add_option("--threads", options->threads, "0 = every core")->check(CLI::Range(0, 1024));
  command->add_option("--key", options->keys,
                      "file with a verifier key that may sign the ledger; may be repeated");
  command->add_option("--kv", options->kv,
                      "KV blocks from `run --export-kv`, to be checked with one receipt");
  command->add_flag("--json", options->json, "one JSON object a line on stdout");
  command->callback([&action, options] { action = [options] { return verify_receipts(*options); }; });
}

}  // namespace fieldprint::cli
