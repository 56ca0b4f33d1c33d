#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "backend/select.h"
#include "base/bounds.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "eval/perplexity.h"

namespace fieldprint::cli {
namespace {

struct PerplexityCommand {
  std::string model;
  std::string text;
  std::string gguf;
  std::string top1;
  std::string backend;
  int threads = 0;
  eval::PerplexityOptions options;
  bool json = false;
};

void print(const PerplexityCommand& command, const eval::PerplexityReport& result) {
  const std::string against = command.gguf.empty() ? "the model file's own weights" : command.gguf;
  if (command.json) {
    const nlohmann::json line = {{"canonical", result.canonical},
                                 {"float32", result.reference},
                                 {"ratio", result.ratio},
                                 {"tokens", result.tokens},
                                 {"context", command.options.context},
                                 {"top1_agreement", result.top1_agreement},
                                 {"divergence", result.divergence},
                                 {"float32_weights", against}};
    print_line(line);
    return;
  }
  fmt::print("perplexity  canonical {:.4f}, float32 {:.4f} ({}), ratio {:.5f}\n", result.canonical,
             result.reference, against, result.ratio);
  fmt::print("tokens      {} in windows of {}\n", result.tokens, command.options.context);
  fmt::print("agreement   same most likely token at {:.2f} %, divergence {:.5f} nats a token\n",
             100 * result.top1_agreement, result.divergence);
}

int measure(const PerplexityCommand& command) {
  auto backend = backend::select_backend(command.backend, command.threads);
  if (!backend) return report(backend.error());
  if (Status status = check_replaceable(command.top1); !status) return report(status.error());
  auto text = read_file(command.text, bounds::kMaxTextBytes);
  if (!text) return report(text.error());
  auto file = weights::ModelFile::open(command.model);
  if (!file) return report(file.error());
  const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  auto source = weights::FloatSource::open(command.gguf.empty() ? command.model : command.gguf);
  if (!source) return report(source.error());
  eval::FloatModel reference(std::move(*source), command.threads > 0 ? command.threads : cores);
  Progress progress("evaluating", "windows");
  auto result =
      eval::perplexity(**file, **backend, reference, std::string(text->begin(), text->end()), command.options,
                       [&](std::int64_t done, std::int64_t total) { progress.update(done, total); });
  progress.clear();
  if (!result) return report(result.error());
  if (!command.top1.empty()) {
    if (Status status = write_file_atomically(command.top1, eval::top1_lines(*result)); !status) {
      return report(status.error());
    }
  }
  print(command, *result);
  return kDone;
}

}  // namespace

void add_eval_command(CLI::App& app, Action& action) {
  auto command = std::make_shared<PerplexityCommand>();
  CLI::App* eval = app.add_subcommand("eval", "measure quality");
  eval->require_subcommand(1);
  CLI::App* perplexity =
      eval->add_subcommand("perplexity", "canonical arithmetic and float32 on the same text");
  perplexity->add_option("-m,--model", command->model, "model file (.fpm)")->required();
  perplexity->add_option("--text", command->text, "text file, UTF-8")->required();
  perplexity->add_option("--gguf", command->gguf,
                         "compare with the weights of this GGUF, as they were before the import");
  perplexity->add_option("--context", command->options.context, "tokens of a window");
  perplexity->add_option("--tokens", command->options.tokens, "tokens of the text to use; 0 = all");
  perplexity->add_option("--dump-top1", command->top1,
                         "file for every token and the one that was thought most likely");
  perplexity->add_option("--threads", command->threads, "0 = every core")->check(CLI::Range(0, 1024));
  perplexity->add_option("--backend", command->backend,
                         "scalar, avx2, avx512, amx or cuda; the result is the same");
  perplexity->add_flag("--json", command->json, "one JSON object on stdout");
  perplexity->callback([&action, command] { action = [command] { return measure(*command); }; });
}

}  // namespace fieldprint::cli
