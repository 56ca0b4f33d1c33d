#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <utility>

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
#include "commit/receipt_file.h"
#include "engine/authority.h"
#include "engine/committer.h"
#include "engine/engine.h"
#include "engine/ledger_anchors.h"
#include "store/data_folder.h"

namespace fieldprint::cli {
namespace {

constexpr char kDefaultId[] = "answer";
constexpr char kStrict[] = "strict";
constexpr char kOptimistic[] = "optimistic";

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
Status check_memory(const weights::ModelFile& file, std::int64_t blocks, std::int64_t swap) {
  const weights::ModelSpec& spec = file.spec();
  const std::int64_t block = spec.layers * spec.kv_heads * backend::page_bytes(spec.head_dim);
  const std::int64_t memory = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  const std::int64_t room = memory - file.file_bytes() - swap - (64LL << 20);
  if (blocks <= room / block) return {};
  return environment_error(fmt::format(
      "the model ({} MiB){} and {} KV blocks ({:.0f} MiB) do not fit into this machine's {} MiB; ask for "
      "fewer "
      "--kv-blocks (at most {}), {}a smaller --batch or fewer tokens",
      file.file_bytes() >> 20, swap > 0 ? fmt::format(", {} MiB for swapped blocks", swap >> 20) : "", blocks,
      static_cast<double>(blocks) * static_cast<double>(block) / (1 << 20), memory >> 20,
      std::max<std::int64_t>(room / block, 0), swap > 0 ? "a smaller --kv-swap, " : ""));
}

class Run {
 public:
  Run(const RunOptions& options, const weights::ModelFile& file, const tokenizer::Tokenizer& tokenizer,
      store::SignedLog& log, engine::Authority& authority)
      : options_(options), file_(file), tokenizer_(tokenizer), log_(log), anchors_(authority) {}

  int answer(backend::Backend& backend, std::vector<core::Request> requests) {
    std::int64_t blocks = options_.kv_blocks;
    if (blocks == 0) blocks = blocks_for(requests, options_.batch, file_.spec().context);
    if (options_.kv_swap_mib == 0 && !options_.kv_swap_file.empty())
      return report(caller_error("--kv-swap-file has no room with --kv-swap 0; give it some MiB"));
    const kv::SwapOptions swap{options_.kv_swap_mib << 20, options_.kv_swap_file};
    const std::int64_t swap_memory = swap.file.empty() ? swap.bytes : 0;
    if (Status status = check_memory(file_, blocks, swap_memory); !status) return report(status.error());
    engine::Committer::Options commits;
    commits.run_ahead = options_.run_ahead;
    commits.reexecute_share = options_.reexecute_share;
    commits.patience = std::chrono::seconds(options_.ledger_patience);
    auto committer = engine::Committer::create(log_, anchors_, file_, backend.name(), commits);
    if (!committer) return report(committer.error());
    const engine::Options settings{.kv_blocks = blocks,
                                   .step_tokens = std::max(options_.prefill_chunk, options_.batch),
                                   .prefill_chunk = options_.prefill_chunk,
                                   .max_batch = options_.batch,
                                   .prefix_cache = !options_.no_prefix_cache,
                                   .swap = swap};
    auto engine = engine::Engine::create(file_, tokenizer_, backend, settings, events(), committer->get());
    if (!engine) return report(engine.error());
    engine_ = engine->get();
    for (core::Request& request : requests) {
      request.hold_text = options_.stream == kStrict;
      auto id = engine_->submit(request);
      if (!id) return report(Error{id.error().kind, fmt::format("{}: {}", request.id, id.error().message)});
      printer_.expect(*id, request.id);
      given_[*id].request = std::move(request);
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
  /// A request, and what has come of it.
  struct Given {
    core::Request request;
    core::Answer answer;
    commit::Body body;
    std::string receipt_path;
  };

  engine::Events events() {
    return {
        .token = {},
        .text = [this](core::SequenceId id, std::string_view text) { printer_.text(id, text); },
        .finished = [this](core::SequenceId id, core::Answer answer) { finished(id, std::move(answer)); },
        .failed = [this](core::SequenceId id, const Error& error) { failed(id, error); },
        .recorded = [this](core::SequenceId id, const commit::Receipt& receipt) { recorded(id, receipt); },
        .outage = [this](const std::optional<engine::LedgerOutage>& outage) { tell(outage); },
        .validated =
            [this](core::SequenceId id, const engine::Validation& validation) {
              const Given& given = given_.at(id);
              printer_.finished(id, given.request, given.answer, given.body, given.receipt_path, validation);
            },
        .notice =
            [this](std::string_view text) {
              progress_.clear();
              remark(text);
            }};
  }

  void finished(core::SequenceId id, core::Answer answer) {
    given_.at(id).answer = std::move(answer);
    if (options_.export_kv.empty() || id != given_.begin()->first) return;
    const std::vector<std::uint8_t> bytes = engine_->kv_bytes(id);
    Status status = environment_error("the answer's KV blocks had to be given up; use more --kv-blocks");
    if (!bytes.empty()) status = write_file_atomically(options_.export_kv, bytes);
    if (!status) complain(id, status.error());
  }

  void recorded(core::SequenceId id, const commit::Receipt& receipt) {
    Given& given = given_.at(id);
    given.body = receipt.body;
    if (options_.receipts.empty()) return;
    auto written = commit::write_receipt(options_.receipts, given.request.id, receipt);
    if (written) {
      given.receipt_path = *written;
    } else {
      complain(id, written.error());
    }
  }

  void failed(core::SequenceId id, const Error& error) {
    printer_.failed(id);
    complain(id, error);
    // Of an answer that does not hold no receipt stays.
    const std::string receipt = std::exchange(given_.at(id).receipt_path, {});
    if (receipt.empty()) return;
    if (Status removed = commit::remove_receipt(receipt); !removed) complain(id, removed.error());
  }

  void tell(const std::optional<engine::LedgerOutage>& outage) {
    progress_.clear();
    if (outage) {
      const auto patience = std::chrono::duration_cast<std::chrono::seconds>(outage->patience);
      remark(
          fmt::format("{}; answers wait for the ledger, for {} s at most", outage->reason, patience.count()));
    } else {
      remark("the ledger is back; answers go on");
    }
  }

  void complain(core::SequenceId id, const Error& error) {
    progress_.clear();
    exit_code_ = std::max(exit_code_, report({error.kind, given_.at(id).request.id + ": " + error.message}));
  }

  const RunOptions& options_;
  const weights::ModelFile& file_;
  const tokenizer::Tokenizer& tokenizer_;
  store::SignedLog& log_;
  engine::LedgerAnchors anchors_;
  engine::Engine* engine_ = nullptr;
  AnswerPrinter printer_{options_.json};
  Progress progress_{"computing", "tokens"};
  std::map<core::SequenceId, Given> given_;
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
  if (Status status = check_replaceable(options.export_kv); !status) return report(status.error());
  for (const std::string& folder : {options.receipts, options.data}) {
    if (Status status = ensure_folder(folder); !status) return report(status.error());
  }
  if (Status status = avoid_present_receipts(options.receipts, requests); !status)
    return report(status.error());
  auto opened =
      options.data.empty() ? store::open_passing_log() : store::open_log({options.data, options.database});
  if (!opened) return report(opened.error());
  store::SignedLog& log = **opened;
  auto authority = engine::Authority::follow(log.store(), log.verifier());
  if (!authority) return report(authority.error());
  Status admitted = admit_anchors(*anchors, **authority, log, {options.tenant, (*file)->digest(), utc_now()});
  if (!admitted) return report(admitted.error());
  return Run(options, **file, **tokenizer, log, **authority).answer(**backend, std::move(requests));
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
  auto* no_cache =
      command->add_flag("--no-prefix-cache", options->no_prefix_cache, "compute every prompt from its start");
  auto* swap =
      command
          ->add_option(
              "--kv-swap", options->kv_swap_mib,
              "MiB of host memory for KV blocks that had to make room, so that they come back instead "
              "of being computed again; 0 = none")
          ->check(CLI::Range(std::int64_t{0}, bounds::kMaxKvSwapBytes >> 20))
          ->excludes(no_cache);
  command
      ->add_option("--kv-swap-file", options->kv_swap_file,
                   "keep them in this new file instead; its name is taken away at once")
      ->needs(swap);
  command
      ->add_option(
          "--stream", options->stream,
          "strict: text is shown when it is validated; optimistic: at once, and is provisional until "
          "the answer is validated")
      ->check(CLI::IsMember({kStrict, kOptimistic}))
      ->default_str(kOptimistic);
  command
      ->add_option("--run-ahead", options->run_ahead,
                   "commits of an answer that may wait for validation before it has to")
      ->check(CLI::Range(1, 1 << 20));
  command
      ->add_option(
          "--reexecute", options->reexecute_share,
          "tokens that are computed again on another backend, in sampled commits, as a share of those "
          "generated and read; 1: every commit is checked so")
      ->check(CLI::Range(0.0, 1.0));
  command
      ->add_option("--ledger-patience", options->ledger_patience,
                   "seconds for which the ledger may fail, a full disk or a server that is restarted, before "
                   "answers stop")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{bounds::kMaxLedgerPatience.count()}));
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
