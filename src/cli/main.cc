#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <system_error>

#include "cli/commands.h"
#include "cli/console.h"

namespace fieldprint::cli {
namespace {

Error cannot_print(const std::error_code& code) {
  return environment_error(fmt::format("cannot write to standard output: {}", code.message()));
}

/// An answer that could not be written is no answer: the disk behind stdout may be full.
int flushed(int exit_code) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return exit_code;
  return report(cannot_print({errno, std::generic_category()}));
}

bool has_command(CLI::App& app, std::string_view name) {
  const std::vector<CLI::App*> commands = app.get_subcommands([](CLI::App*) { return true; });
  return std::any_of(commands.begin(), commands.end(), [&](CLI::App* c) { return c->get_name() == name; });
}

int act(const Action& action) {
  try {
    return flushed(action());
  } catch (const std::bad_alloc&) {
    return report(environment_error(
        "out of memory; ask for fewer --kv-blocks, a smaller --batch or --prefill-chunk, or fewer tokens"));
  } catch (const std::system_error& error) {
    // fmt::print throws it, and nothing else that runs here: paths are opened by calls that return their
    // errors, and a thread pool makes do with the threads it gets.
    return report(cannot_print(error.code()));
  } catch (const std::exception& error) {
    return report(environment_error(fmt::format("unexpected failure: {}", error.what())));
  }
}

/// A list that is empty by default need not say so.
void hide_empty_defaults(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_default_str() == "[]") option->default_str("");
  }
  for (CLI::App* part : app.get_subcommands({})) hide_empty_defaults(*part);
}

int run_command_line(int argc, char** argv) {
  CLI::App app{"fieldprint: verifiable inference for long-running agents"};
  app.name("fieldprint");
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default();  // for every command: --help says them
  app.footer(
      "Exit codes: 0 done; 1 the answer is no; 2 bad usage or unreadable input; 3 the environment failed.");
  Action action;
  add_model_command(app, action);
  add_run_command(app, action);
  add_verify_command(app, action);
  add_anchor_command(app, action);
  add_ledger_command(app, action);
  add_eval_command(app, action);
  add_bench_command(app, action);
  add_doctor_command(app, action);
  hide_empty_defaults(app);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return fmt::format("fieldprint: {}\nRun with --help for more information.\n", error.what());
  });
  if (argc > 1 && argv[1][0] != '-' && !has_command(app, argv[1])) {
    return report(
        caller_error(fmt::format("there is no command '{}'; `fieldprint --help` lists them", argv[1])));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kBadUsage;
  }
  return act(action);
}

}  // namespace
}  // namespace fieldprint::cli

int main(int argc, char** argv) {
  // Where files may not grow, writing fails and is reported, as on a full disk.
  std::signal(SIGXFSZ, SIG_IGN);
  return fieldprint::cli::run_command_line(argc, argv);
}
