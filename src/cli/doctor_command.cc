#include <fmt/format.h>
#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "backend/select.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "exact/format.h"
#include "tokenizer/pre_tokenizer.h"

namespace fieldprint::cli {
namespace {

int doctor(bool json) {
  std::vector<std::string> backends;
  nlohmann::json obstacles = nlohmann::json::object();
  for (const backend::BackendOffer& offer : backend::backend_offers()) {
    if (offer.obstacle.empty()) {
      backends.push_back(offer.name);
    } else {
      obstacles[offer.name] = offer.obstacle;
    }
  }
  const unsigned cores = std::thread::hardware_concurrency();
  const std::int64_t memory = std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  if (json) {
    const nlohmann::json line = {{"canon", exact::kCanonVersion},
                                 {"unicode", tokenizer::unicode_version()},
                                 {"backends", backends},
                                 {"backend_obstacles", obstacles},
                                 {"cores", cores},
                                 {"memory_bytes", memory}};
    print_line(line);
    return kDone;
  }
  fmt::print("arithmetic  {}\nunicode     {}\ncores       {}\nmemory      {:.1f} GiB\nbackends    ",
             exact::kCanonVersion, tokenizer::unicode_version(), cores,
             static_cast<double>(memory) / static_cast<double>(1LL << 30));
  for (const std::string& name : backends)
    fmt::print("{}{}", name, name == backends.front() ? " (default)  " : "  ");
  fmt::print("\n");
  for (const auto& [name, obstacle] : obstacles.items()) {
    fmt::print("no {:<9}it {}\n", name, obstacle.get<std::string>());
  }
  if (!obstacles.empty()) fmt::print("note        answers are the same on every backend, only slower\n");
  return kDone;
}

}  // namespace

void add_doctor_command(CLI::App& app, Action& action) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("doctor", "what this machine offers, what is missing, what to do");
  command->add_flag("--json", *json, "one JSON object on stdout");
  command->callback([&action, json] { action = [json] { return doctor(*json); }; });
}

}  // namespace fieldprint::cli
