#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace fieldprint::cli {

/// What the chosen command does; it returns the exit code.
using Action = std::function<int()>;

/// Each adds its command to `app` and sets `action` when the command is chosen.
void add_model_command(CLI::App& app, Action& action);
void add_run_command(CLI::App& app, Action& action);
void add_verify_command(CLI::App& app, Action& action);
void add_eval_command(CLI::App& app, Action& action);
void add_bench_command(CLI::App& app, Action& action);
/// Parts of the bench command.
void add_bench_attention_command(CLI::App& bench, Action& action);
void add_bench_model_command(CLI::App& bench, Action& action);
void add_bench_ledger_command(CLI::App& bench, Action& action);
void add_bench_commits_command(CLI::App& bench, Action& action);
void add_ledger_command(CLI::App& app, Action& action);
/// Parts of the ledger command.
void add_check_proof_command(CLI::App& ledger, Action& action);
void add_ledger_serve_command(CLI::App& ledger, Action& action);
void add_anchor_command(CLI::App& app, Action& action);
/// Parts of the anchor command.
void add_anchor_key_command(CLI::App& anchor, Action& action);
void add_anchor_policy_command(CLI::App& anchor, Action& action);
void add_doctor_command(CLI::App& app, Action& action);

}  // namespace fieldprint::cli
