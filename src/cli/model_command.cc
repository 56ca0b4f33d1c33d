#include <fmt/format.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "backend/select.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "eval/calibrate.h"
#include "weights/import.h"

namespace fieldprint::cli {
namespace {

struct ImportOptions {
  std::string gguf;
  std::string out;
  std::string backend;
  int threads = 0;
  bool json = false;
};

int import_model(const ImportOptions& options) {
  auto backend = backend::select_backend(options.backend, options.threads);
  if (!backend) return report(backend.error());
  Progress progress("importing", "bytes");
  auto file = weights::import_gguf(
      options.gguf, options.out,
      [&](const weights::ModelFile& draft) { return eval::calibrate(draft, **backend); },
      [&](std::int64_t done, std::int64_t total) { progress.update(done, total); });
  progress.clear();
  if (!file) return report(file.error());
  const std::string digest = to_hex((*file)->digest());
  if (options.json) {
    const nlohmann::json line = {
        {"model_digest", digest}, {"file", options.out}, {"bytes", (*file)->file_bytes()}};
    print_line(line);
  } else {
    fmt::print("{}\n", digest);
  }
  return kDone;
}

int show_model(const std::string& path, bool json) {
  auto file = weights::ModelFile::open(path);
  if (!file) return report(file.error());
  // ModelFile::open saw that it is JSON.
  const auto manifest = nlohmann::json::parse((*file)->manifest(), nullptr, false);
  if (json) {
    const nlohmann::json line = {{"model_digest", to_hex((*file)->digest())},
                                 {"bytes", (*file)->file_bytes()},
                                 {"manifest", manifest}};
    print_line(line);
    return kDone;
  }
  const weights::ModelSpec& spec = (*file)->spec();
  fmt::print("model    {}\ndigest   {}\nfile     {} bytes\n", spec.name, to_hex((*file)->digest()),
             (*file)->file_bytes());
  fmt::print("layers   {}, dim {}, feed-forward {}, {} query and {} key-value heads of {}\n", spec.layers,
             spec.dim, spec.hidden, spec.heads, spec.kv_heads, spec.head_dim);
  fmt::print("context  {} tokens, vocabulary {}\n", spec.context, spec.vocab);
  fmt::print("{}\n", manifest.dump(2));
  return kDone;
}

}  // namespace

void add_model_command(CLI::App& app, Action& action) {
  CLI::App* model = app.add_subcommand("model", "import a GGUF file, or show a model file");
  model->require_subcommand(1);

  auto options = std::make_shared<ImportOptions>();
  CLI::App* convert = model->add_subcommand("import", "convert a GGUF file; prints the model's digest");
  convert->add_option("FILE", options->gguf, "GGUF file")->required();
  convert->add_option("-o,--output", options->out, "model file to write (.fpm)")->required();
  convert->add_option("--backend", options->backend,
                      "scalar, avx2, avx512, amx or cuda; the result is the same");
  convert->add_option("--threads", options->threads, "0 = every core")->check(CLI::Range(0, 1024));
  convert->add_flag("--json", options->json, "one JSON object on stdout");
  convert->callback([&action, options] { action = [options] { return import_model(*options); }; });

  auto path = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  CLI::App* info = model->add_subcommand("info", "check a model file and show what is in it");
  info->add_option("FILE", *path, "model file (.fpm)")->required();
  info->add_flag("--json", *json, "one JSON object on stdout");
  info->callback([&action, path, json] { action = [path, json] { return show_model(*path, *json); }; });
}

}  // namespace fieldprint::cli
