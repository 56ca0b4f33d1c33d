#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "base/bounds.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/ledger_options.h"
#include "cli/median.h"
#include "cli/workplace.h"
#include "ledger/merkle.h"
#include "store/data_folder.h"

namespace fieldprint::cli {
namespace {

using Clock = std::chrono::steady_clock;
using Rng = std::mt19937_64;

struct BenchOptions {
  store::DataFolder place;
  std::uint64_t appends = 100'000;
  std::size_t leaf_bytes = 1024;
  int threads = 64;
  int repeats = 3;
  std::uint64_t proof_leaves = 10'000'000;
  int proofs = 5000;
  bool json = false;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

store::Bytes random_leaf(Rng& random, std::size_t size) {
  store::Bytes bytes(size);
  for (std::size_t i = 0; i < size; i += 8) {
    const std::uint64_t word = random();
    std::copy_n(reinterpret_cast<const std::uint8_t*>(&word), std::min<std::size_t>(8, size - i),
                bytes.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return bytes;
}

double quantile(std::vector<double>& sorted, double q) {
  return sorted[std::min(sorted.size() - 1,
                         static_cast<std::size_t>(q * static_cast<double>(sorted.size())))];
}

nlohmann::json summary(std::vector<double> values, double unit) {
  std::sort(values.begin(), values.end());
  return {{"p50", quantile(values, 0.5) * unit},
          {"p99", quantile(values, 0.99) * unit},
          {"max", values.back() * unit}};
}

/// Threads that append one leaf at a time, each as soon as its last one is durable.
Result<nlohmann::json> measure_appends(store::SignedLog& log, const BenchOptions& options,
                                       std::uint64_t seed) {
  const auto threads = static_cast<std::size_t>(options.threads);
  std::vector<std::vector<double>> latencies(threads);
  std::vector<Error> errors(threads, Error{ErrorKind::kEnvironment, ""});
  std::atomic<std::uint64_t> next{0};
  const Clock::time_point start = Clock::now();
  std::vector<std::thread> team;
  for (std::size_t t = 0; t < threads; ++t) {
    team.emplace_back([&, t] {
      Rng random(seed * 1000 + t);
      while (next.fetch_add(1, std::memory_order_relaxed) < options.appends) {
        const store::Bytes leaf = random_leaf(random, options.leaf_bytes);
        const Clock::time_point begin = Clock::now();
        auto logged = log.append({&leaf, 1});
        if (!logged) {
          errors[t] = logged.error();
          return;
        }
        latencies[t].push_back(seconds_since(begin));
      }
    });
  }
  for (std::thread& thread : team) thread.join();
  const double seconds = seconds_since(start);
  std::vector<double> all;
  for (std::size_t t = 0; t < threads; ++t) {
    if (!errors[t].message.empty()) return errors[t];
    all.insert(all.end(), latencies[t].begin(), latencies[t].end());
  }
  return nlohmann::json{{"seconds", seconds},
                        {"appends_per_s", static_cast<double>(all.size()) / seconds},
                        {"latency_ms", summary(std::move(all), 1e3)}};
}

Result<nlohmann::json> bench_appends(const BenchOptions& options, const store::DataFolder& place) {
  auto log = store::open_log(place);
  if (!log) return log.error();
  auto first = (*log)->store().size();
  if (!first) return first.error();
  if (*first > 0)
    return caller_error(fmt::format("{} holds a ledger already; measure in a new one", place.ledger()));
  nlohmann::json runs = nlohmann::json::array();
  std::vector<double> rates;
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    auto run = measure_appends(**log, options, static_cast<std::uint64_t>(repeat) + 1);
    if (!run) return run;
    rates.push_back((*run)["appends_per_s"].get<double>());
    runs.push_back(std::move(*run));
  }
  // One checkpoint for each transaction.
  std::uint64_t groups = 0;
  for (std::uint64_t from = 0;;) {
    auto kept = (*log)->store().checkpoints(from, 10'000);
    if (!kept) return kept.error();
    if (kept->empty()) break;
    groups += kept->size();
    from = kept->back().size + 1;
  }
  const double leaves = static_cast<double>(options.appends) * options.repeats;
  return nlohmann::json{
      {"appends", options.appends},
      {"leaf_bytes", options.leaf_bytes},
      {"threads", options.threads},
      {"appends_per_s", median(rates)},
      {"leaves_per_transaction", leaves / static_cast<double>(std::max<std::uint64_t>(groups, 1))},
      {"runs", runs}};
}

/// Fills a ledger with small leaves, as fast as it goes.
Status fill(store::LedgerStore& store, std::uint64_t leaves) {
  constexpr std::uint64_t kBatch = 1 << 16;
  Progress progress("building", "leaves");
  std::vector<store::Bytes> bytes;
  for (std::uint64_t size = 0; size < leaves;) {
    bytes.clear();
    const std::uint64_t end = std::min(leaves, size + kBatch);
    for (; size < end; ++size) {
      store::Bytes leaf(8);
      for (std::size_t i = 0; i < 8; ++i) leaf[i] = static_cast<std::uint8_t>(size >> (8 * i));
      bytes.push_back(std::move(leaf));
    }
    auto appended = store.append(bytes);
    if (!appended) return appended.error();
    progress.update(static_cast<std::int64_t>(size), static_cast<std::int64_t>(leaves));
  }
  return {};
}

Result<nlohmann::json> bench_proofs(const BenchOptions& options, const store::DataFolder& place) {
  auto store = store::open_ledger(place.ledger(), store::Access::kAppend);
  if (!store) return store.error();
  const Clock::time_point start = Clock::now();
  if (Status status = fill(**store, options.proof_leaves); !status) return status.error();
  const double build_seconds = seconds_since(start);
  auto size = (*store)->size();
  if (!size) return size.error();
  auto root = (*store)->root_at(*size);
  if (!root) return root.error();
  Rng random(7);
  std::vector<double> inclusion;
  std::vector<double> verification;
  std::vector<double> consistency;
  for (int i = 0; i < options.proofs; ++i) {
    const std::uint64_t index = random() % *size;
    Clock::time_point begin = Clock::now();
    auto leaf = (*store)->leaf_hash(index);
    auto proof = (*store)->inclusion_proof(index, *size);
    inclusion.push_back(seconds_since(begin));
    if (!leaf) return leaf.error();
    if (!proof) return proof.error();
    begin = Clock::now();
    const Status holds = ledger::verify_inclusion(*leaf, index, *size, *proof, *root);
    verification.push_back(seconds_since(begin));
    CHECK(holds.ok(), "the ledger's own proof does not hold: {}", holds.error().message);
    begin = Clock::now();
    auto steps = (*store)->consistency_proof(1 + random() % *size, *size);
    consistency.push_back(seconds_since(begin));
    if (!steps) return steps.error();
  }
  nlohmann::json line = {{"leaves", *size},
                         {"build_seconds", build_seconds},
                         {"proofs", options.proofs},
                         {"inclusion_us", summary(std::move(inclusion), 1e6)},
                         {"consistency_us", summary(std::move(consistency), 1e6)},
                         {"verify_inclusion_us", summary(std::move(verification), 1e6)}};
  store->reset();  // so that the write-ahead log is in the file
  std::error_code unknown;
  const auto bytes = std::filesystem::file_size(place.ledger(), unknown);
  if (!unknown) line["database_bytes"] = bytes;
  return line;
}

int bench_ledger(const BenchOptions& options) {
  if (!options.place.database.empty() && options.proof_leaves > 0 && options.appends > 0) {
    return report(caller_error(
        "a database holds one ledger: measure appends (--proof-leaves 0) or proofs (--appends 0)"));
  }
  auto work = Workplace::make(options.place);
  if (!work) return report(work.error());
  const store::DataFolder& place = work->place();
  nlohmann::json line = {{"benchmark", "ledger"},
                         {"store", place.database.empty() ? "sqlite" : "postgresql"},
                         {"cpu", cpu_model()},
                         {"cores", std::thread::hardware_concurrency()},
                         {"date", today()}};
  if (options.appends > 0) {
    auto appends = bench_appends(options, place);
    if (!appends) return report(appends.error());
    line["append"] = std::move(*appends);
  }
  if (options.proof_leaves > 0) {
    store::DataFolder beside = place;
    if (place.database.empty() && options.appends > 0) {
      beside.folder += "/proofs";
      std::error_code failure;
      std::filesystem::create_directory(beside.folder, failure);
      if (failure)
        return report(environment_error(
            fmt::format("cannot create the folder {}: {}", beside.folder, failure.message())));
    }
    auto proofs = bench_proofs(options, beside);
    if (!proofs) return report(proofs.error());
    line["proof"] = std::move(*proofs);
  }
  fmt::print("{}\n", options.json ? line.dump() : line.dump(2));
  return kDone;
}

}  // namespace

void add_bench_ledger_command(CLI::App& bench, Action& action) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* command = bench.add_subcommand("ledger", "durable appends and proofs of a ledger");
  command->add_option("--data", options->place.folder,
                      "new folder to measure in and keep; by default one that goes away");
  command->add_option("--database", options->place.database,
                      "PostgreSQL database to measure, empty at first");
  command->add_option("--appends", options->appends, "leaves appended one by one in each run; 0 = none");
  command->add_option("--leaf-bytes", options->leaf_bytes, "bytes of a leaf")
      ->check(CLI::Range(std::int64_t{8}, bounds::kMaxLeafBytes));
  command->add_option("--threads", options->threads, "threads that append at once")
      ->check(CLI::Range(1, 4096));
  command->add_option("--repeats", options->repeats, "runs; the median counts")->check(CLI::Range(1, 1000));
  command->add_option("--proof-leaves", options->proof_leaves,
                      "leaves of the ledger whose proofs are timed; 0 = none");
  command->add_option("--proofs", options->proofs, "proofs timed")->check(CLI::Range(1, 1 << 24));
  command->add_flag("--json", options->json, "one JSON object on one line");
  command->callback([&action, options] { action = [options] { return bench_ledger(*options); }; });
}

}  // namespace fieldprint::cli
