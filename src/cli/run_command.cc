#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

#include "backend/select.h"
#include "base/bounds.h"
#include "base/file.h"
#include "base/utc_time.h"
#include "cli/answer_printer.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/ledger_options.h"
#include "cli/run_anchors.h"
#include "cli/run_options.h"
#include "commit/freeze.h"
#include "commit/receipt_file.h"
#include "engine/authority.h"
#include "engine/engine.h"
#include "engine/recorder.h"
#include "exact/format.h"

namespace fieldprint::cli {
namespace {

constexpr char kDefaultId[] = "answer";

Result<std::vector<Prompt>> gather_prompts(const RunOptions& options) {
  Prompt defaults = options.defaults;
  defaults.id = kDefaultId;
  if (!options.prompts.empty()) return read_prompts(options.prompts, defaults);
  if (!options.chat.empty()) {
    auto chat = read_chat(options.chat, defaults);
    if (!chat) return chat.error();
    return std::vector<Prompt>{std::move(*chat)};
  }
  defaults.text = options.text;
  return std::vector<Prompt>{defaults};
}

/// Receipts are never replaced: an id that we gave is numbered, one that the caller gave is refused.
Status avoid_present_receipts(const std::string& folder, std::vector<core::Request>& requests) {
  if (folder.empty()) return {};
  for (core::Request& request : requests) {
    const bool ours = request.id == kDefaultId;
    auto there = commit::has_receipt(folder, request.id);
    for (int number = 2; there && *there && ours; ++number) {
      request.id = fmt::format("{}-{}", kDefaultId, number);
      there = commit::has_receipt(folder, request.id);
    }
    if (!there) return there.error();
    if (*there) {
      return caller_error(fmt::format(
          "{}/{}.receipt is there already; give the prompt another id, or --receipts another folder", folder,
          request.id));
    }
  }
  return {};
}

std::vector<commit::AnchorRecord> anchor_records(const anchor::AnchorSet& anchors) {
  std::vector<commit::AnchorRecord> records;
  for (const anchor::Anchor& anchor : anchors.anchors())
    records.push_back({anchor.id(), anchor.canonical_bytes()});
  return records;
}

/// Blocks that the `batch` longest requests need at the same time, with a spare one each.
std::int64_t blocks_for(const std::vector<core::Request>& requests, std::int32_t batch,
                        std::int64_t context) {
  std::vector<std::int64_t> needs;
  for (const core::Request& request : requests) {
    const std::int64_t tokens = static_cast<std::int64_t>(request.prompt.size()) + request.max_tokens;
    needs.push_back(request.layout.blocks_for(std::min(tokens, context)) + 1);
  }
  std::sort(needs.rbegin(), needs.rend());
  std::int64_t blocks = 1;
  for (std::size_t i = 0; i < needs.size() && i < static_cast<std::size_t>(batch); ++i) blocks += needs[i];
  return blocks;
}

/// Refuses what the machine's memory cannot hold, before it is half done.
Status check_memory(const weights::ModelFile& file, std::int64_t blocks) {
  const weights::ModelSpec& spec = file.spec();
  const std::int64_t block = spec.layers * spec.kv_heads * backend::page_bytes(spec.head_dim);
  const std::int64_t memory = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  const std::int64_t room = memory - file.file_bytes() - (64LL << 20);
  if (blocks <= room / block) return {};
  return environment_error(fmt::format(
      "the model ({} MiB) and {} KV blocks ({:.0f} MiB) do not fit into this machine's {} MiB; ask for fewer "
      "--kv-blocks (at most {}), a smaller --batch or fewer tokens",
      file.file_bytes() >> 20, blocks, static_cast<double>(blocks) * static_cast<double>(block) / (1 << 20),
      memory >> 20, std::max<std::int64_t>(room / block, 0)));
}

class Run {
 public:
  Run(const RunOptions& options, const weights::ModelFile& file, const tokenizer::Tokenizer& tokenizer,
      const anchor::AnchorSet& anchors, engine::Recorder& recorder)
      : options_(options), file_(file), tokenizer_(tokenizer), anchors_(anchors), recorder_(recorder) {}

  int answer(backend::Backend& backend, std::vector<core::Request> requests) {
    std::int64_t blocks = options_.kv_blocks;
    if (blocks == 0) blocks = blocks_for(requests, options_.batch, file_.spec().context);
    if (Status status = check_memory(file_, blocks); !status) return report(status.error());
    const engine::Options settings{.kv_blocks = blocks,
                                   .step_tokens = std::max(options_.prefill_chunk, options_.batch),
                                   .prefill_chunk = options_.prefill_chunk,
                                   .max_batch = options_.batch,
                                   .prefix_cache = !options_.no_prefix_cache};
    auto engine = engine::Engine::create(
        file_, tokenizer_, backend, settings,
        {.token = {},
         .text = [&](core::SequenceId id, std::string_view text) { printer_.text(id, text); },
         .finished = [&](core::SequenceId id, const core::Answer& answer) { finished(id, answer); },
         .failed = [&](core::SequenceId id, const Error& error) { failed(id, error); }});
    if (!engine) return report(engine.error());
    engine_ = engine->get();
    for (core::Request& request : requests) {
      auto id = engine_->submit(request);
      if (!id) return report(Error{id.error().kind, fmt::format("{}: {}", request.id, id.error().message)});
      printer_.expect(*id, request.id);
      requests_.emplace(*id, std::move(request));
    }
    while (engine_->step()) {
      const engine::EngineStats stats = engine_->stats();
      if (!options_.json && !printer_.streaming()) progress_.update(stats.computed_tokens, 0);
    }
    progress_.clear();
    printer_.finish();
    engine_ = nullptr;
    return exit_code_;
  }

 private:
  void finished(core::SequenceId id, const core::Answer& answer) {
    const core::Request& request = requests_.at(id);
    const commit::Body body =
        commit::freeze({file_.digest(), exact::kCanonVersion, anchor_records(anchors_)}, request, answer);
    std::string path;
    std::vector<Error> errors;
    auto receipt = recorder_.record(body);
    if (!receipt) {
      errors.push_back(receipt.error());
    } else if (!options_.receipts.empty()) {
      auto written = commit::write_receipt(options_.receipts, request.id, *receipt);
      if (!written) errors.push_back(written.error());
      if (written) path = *written;
    }
    if (!options_.export_kv.empty() && id == requests_.begin()->first) {
      Status status = write_file_atomically(options_.export_kv, engine_->kv_bytes(id));
      if (!status) errors.push_back(status.error());
    }
    printer_.finished(id, request, answer, body, path);
    for (const Error& error : errors) complain(id, error);
  }

  void failed(core::SequenceId id, const Error& error) {
    printer_.failed(id);
    complain(id, error);
  }

  void complain(core::SequenceId id, const Error& error) {
    progress_.clear();
    exit_code_ = std::max(exit_code_, report({error.kind, requests_.at(id).id + ": " + error.message}));
  }

  const RunOptions& options_;
  const weights::ModelFile& file_;
  const tokenizer::Tokenizer& tokenizer_;
  const anchor::AnchorSet& anchors_;
  engine::Recorder& recorder_;
  engine::Engine* engine_ = nullptr;
  AnswerPrinter printer_{options_.json};
  Progress progress_{"computing", "tokens"};
  std::map<core::SequenceId, core::Request> requests_;
  int exit_code_ = kDone;
};

int run(const RunOptions& options) {
  auto backend = backend::select_backend(options.backend, options.threads);
  if (!backend) return report(backend.error());
  auto anchors = read_anchors(options.anchors, {options.data, options.database});
  if (!anchors) return report(anchors.error());
  auto anchor_bounds = anchors->set.bounds(options.anchor_bounds);
  if (!anchor_bounds) return report(anchor_bounds.error());
  auto prompts = gather_prompts(options);
  if (!prompts) return report(prompts.error());
  auto file = weights::ModelFile::open(options.model);
  if (!file) return report(file.error());
  auto tokenizer = tokenizer::Tokenizer::make((*file)->vocabulary());
  if (!tokenizer) return report(tokenizer.error());
  std::vector<core::Request> requests;
  for (const Prompt& prompt : *prompts) {
    auto request = make_request(prompt, **tokenizer, anchors->set, *anchor_bounds, options.max_anchor_tokens);
    if (!request) return report(Error{request.error().kind, prompt.id + ": " + request.error().message});
    request->tenant_name = options.tenant;
    requests.push_back(std::move(*request));
  }
  for (const std::string& folder : {options.receipts, options.data}) {
    if (Status status = ensure_folder(folder); !status) return report(status.error());
  }
  if (Status status = avoid_present_receipts(options.receipts, requests); !status)
    return report(status.error());
  auto recorder = engine::Recorder::open(options.data, options.database);
  if (!recorder) return report(recorder.error());
  store::SignedLog& log = (*recorder)->log();
  auto authority = engine::Authority::follow(log.store(), log.verifier());
  if (!authority) return report(authority.error());
  Status admitted = admit_anchors(*anchors, **authority, log, {options.tenant, (*file)->digest(), utc_now()});
  if (!admitted) return report(admitted.error());
  return Run(options, **file, **tokenizer, anchors->set, **recorder).answer(**backend, std::move(requests));
}

void add_prompt_options(CLI::App& command, RunOptions& options) {
  auto* source = command.add_option_group("prompt", "where the prompt comes from");
  source->add_option("-p,--prompt", options.text, "text to go on from");
  source->add_option("--chat", options.chat, "JSON file with the messages of a chat");
  source->add_option("--prompts", options.prompts, "JSON lines, one prompt each");
  source->require_option(1);
  command.add_option("-n,--max-tokens", options.defaults.max_tokens, "most tokens to generate")
      ->check(CLI::Range(1, 1 << 20));
  SamplingSettings& sampling = options.defaults.sampling;
  command.add_option("--seed", sampling.seed, "of the random numbers")->check(CLI::NonNegativeNumber);
  command.add_option("--temperature", sampling.temperature, "0 = greedy");
  command.add_option("--top-k", sampling.top_k, "0 = off");
  command.add_option("--top-p", sampling.top_p, "1 = off");
  command.add_option("--min-p", sampling.min_p, "0 = off");
  command.add_option("--repetition-penalty", sampling.repetition_penalty, "1 = off");
  command.add_option("--stop", options.defaults.stop, "text that ends the answer; may be repeated");
  command.add_option("--logprobs", options.defaults.logprobs,
                     "report log-probabilities and this many alternatives");
}

}  // namespace

void add_run_command(CLI::App& app, Action& action) {
  auto options = std::make_shared<RunOptions>();
  options->max_anchor_tokens = bounds::kMaxAnchorTokens;
  CLI::App* command = app.add_subcommand("run", "answer prompts, with receipts");
  command->add_option("-m,--model", options->model, "model file (.fpm)")->required();
  add_prompt_options(*command, *options);
  command->add_option(
      "--anchor", options->anchors,
      "what to pin before the context: a text file, or the id of an anchor in the ledger; may be repeated");
  command->add_option("--tenant", options->tenant, "for whom; an anchor may be for certain tenants only");
  command->add_option("--anchor-floor", options->anchor_bounds.floor,
                      "least share of attention for the anchors; they may ask for more");
  command->add_option("--anchor-ceiling", options->anchor_bounds.ceiling,
                      "largest share of attention for the anchors; they may allow less");
  command->add_option("--max-anchor-tokens", options->max_anchor_tokens, "longest anchors accepted")
      ->check(CLI::Range(std::int64_t{1}, bounds::kMaxContext));
  command->add_option("--threads", options->threads, "0 = every core")->check(CLI::Range(0, 1024));
  command->add_option("--backend", options->backend,
                      "scalar, avx2, avx512, amx or cuda; the answer is the same");
  command->add_option("--batch", options->batch, "sequences computed together");
  command->add_option("--prefill-chunk", options->prefill_chunk, "tokens of a prompt computed in one step");
  command->add_option("--kv-blocks", options->kv_blocks,
                      "blocks of 64 tokens in the KV cache; 0 = as needed");
  command->add_flag("--no-prefix-cache", options->no_prefix_cache, "compute every prompt from its start");
  command->add_option("--receipts", options->receipts, "folder for the receipts");
  command->add_option("--data", options->data,
                      "folder of the ledger and its key; without it they end with this run");
  command
      ->add_option(
          "--database", options->database,
          "PostgreSQL database for the ledger (postgresql://USER@HOST/NAME); the key stays in --data")
      ->needs("--data");
  command->add_option("--export-kv", options->export_kv,
                      "file for the KV blocks of the first prompt's answer");
  command->add_flag("--json", options->json, "one JSON object a line on stdout");
  command->callback([&action, options] { action = [options] { return run(*options); }; });
}

}  // namespace fieldprint::cli
