#include "cli/commands.h"
#include "cli/console.h"

int main(int argc, char** argv) {
  using namespace fieldprint::cli;
  CLI::App app{"fieldprint: verifiable inference for long-running agents"};
  app.name("fieldprint");
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done; 1 the answer is no; 2 bad usage or unreadable input; 3 the environment failed.");
  Action action;
  add_model_command(app, action);
  add_run_command(app, action);
  add_verify_command(app, action);
  add_eval_command(app, action);
  add_bench_command(app, action);
  add_doctor_command(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kBadUsage;
  }
  return action();
}
