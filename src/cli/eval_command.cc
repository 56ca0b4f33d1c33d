#include "cli/commands.h"
#include "cli/console.h"

namespace fieldprint::cli {
void add_eval_command(CLI::App&, Action&) {}
void add_bench_command(CLI::App&, Action&) {}
}  // namespace fieldprint::cli
