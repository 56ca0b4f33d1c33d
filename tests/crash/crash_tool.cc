// What the campaign of faults (faults.py) runs beside `fieldprint`: a process that appends and says what was
// acknowledged, one that checks such promises, and the faults that need no process of their own.

#include <fmt/format.h>

#include <iostream>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <sstream>

#include "base/base64.h"
#include "base/fault_point.h"
#include "base/file.h"
#include "crash/disk_faults.h"
#include "crash/engine_faults.h"
#include "crash/forgeries.h"
#include "store/audit.h"
#include "store/data_folder.h"
#include "weights/gguf_test_builder.h"

namespace fieldprint::crash {
namespace {

constexpr int kDone = 0, kRefuted = 1, kBadUsage = 2, kEnvironmentFailed = 3;

int fail(const Error& error) {
  fmt::print(stderr, "crash_tool: {}\n", error.message);
  return error.kind == ErrorKind::kRefuted  ? kRefuted
         : error.kind == ErrorKind::kCaller ? kBadUsage
                                            : kEnvironmentFailed;
}

int points() {
  for (const fault::Point& point : fault::kPoints) fmt::print("{} {}\n", point.name, point.can_fail ? 1 : 0);
  return kDone;
}

// A ledger's folder, or FOLDER,URL where it is in a PostgreSQL database.
store::DataFolder place_of(const std::string& word) {
  const auto comma = word.find(',');
  if (comma == std::string::npos) return {word, ""};
  return {word.substr(0, comma), word.substr(comma + 1)};
}

// Appends `count` times one to three leaves; for each leaf a line when it is acknowledged, at once.
int append(const store::DataFolder& place, int count, std::uint64_t seed) {
  auto log = store::open_log(place);
  if (!log) return fail(log.error());
  std::mt19937_64 random(seed);
  for (int i = 0; i < count; ++i) {
    std::vector<store::Bytes> leaves(1 + random() % 3);
    for (store::Bytes& leaf : leaves) {
      leaf.resize(8 + random() % 300);
      for (std::uint8_t& byte : leaf) byte = static_cast<std::uint8_t>(random());
    }
    auto logged = (*log)->append(leaves);
    if (!logged) return fail(logged.error());
    const auto stated = store::read_checkpoint(logged->front().checkpoint);
    for (std::size_t k = 0; k < leaves.size(); ++k) {
      fmt::print("ACK {} {} {} {}\n", (*logged)[k].index, to_hex(ledger::leaf_hash(leaves[k])), stated->size,
                 to_hex(stated->root));
    }
    std::fflush(stdout);
    if (i % 3 != 2) continue;
    if (Status status = (*log)->store().keep_checkpoint(logged->front().checkpoint); !status)
      return fail(status.error());
  }
  return kDone;
}

// Leaves that are there more often than once: nothing that is appended here is meant to be.
Result<std::int64_t> repeated(store::LedgerStore& ledger, std::uint64_t size) {
  std::set<Digest> seen;
  for (std::uint64_t i = 0; i < size; ++i) {
    auto hash = ledger.leaf_hash(i);
    if (!hash) return hash.error();
    seen.insert(*hash);
  }
  return static_cast<std::int64_t>(size - seen.size());
}

// Reads such lines, and says how many of them do not hold in the ledger and whether it is sound.
int check(const store::DataFolder& place) {
  auto ledger = store::open_ledger(place.ledger(), store::Access::kRead);
  if (!ledger) return fail(ledger.error());
  std::int64_t acknowledged = 0;
  std::int64_t lost = 0;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string label, leaf_hash, root;
    std::uint64_t index = 0, size = 0;
    // A process that was killed may have written a part of its last line.
    if (!(words >> label >> index >> leaf_hash >> size >> root) || label != "ACK" || root.size() != 64)
      continue;
    ++acknowledged;
    auto stored = (*ledger)->leaf_hash(index);
    auto stored_root = (*ledger)->root_at(size);
    if (!stored || to_hex(*stored) != leaf_hash || !stored_root || to_hex(*stored_root) != root) ++lost;
  }
  auto line = read_file(place.public_key(), 4096);
  if (!line) return fail(line.error());
  auto key = ledger::VerifierKey::parse(
      std::string_view(reinterpret_cast<const char*>(line->data()), line->empty() ? 0 : line->size() - 1));
  if (!key) return fail(key.error());
  auto report = store::audit(**ledger, {.keys = {&*key, 1}});
  if (!report) return fail(report.error());
  auto twice = repeated(**ledger, report->leaves);
  if (!twice) return fail(twice.error());
  if (report->problem.empty() && *twice > 0) report->problem = fmt::format("{} records are repeated", *twice);
  fmt::print("{}\n", nlohmann::json{{"acknowledged", acknowledged},
                                    {"lost", lost},
                                    {"leaves", report->leaves},
                                    {"problem", report->problem}}
                         .dump());
  return lost == 0 && report->problem.empty() ? kDone : kRefuted;
}

int tiny(const std::string& path) {
  weights::testing::write_file(path, weights::testing::TinyModel{}.builder().build());
  return kDone;
}

int print(const Tally& tally) {
  fmt::print("{}\n", nlohmann::json{{"what", tally.what},
                                    {"tried", tally.tried},
                                    {"answered", tally.answered},
                                    {"lost", tally.lost},
                                    {"problem", tally.problem}}
                         .dump());
  return tally.tried > 0 && tally.tried == tally.answered && tally.lost == 0 ? kDone : kRefuted;
}

int run(const std::vector<std::string>& words) {
  const std::string command = words.empty() ? "" : words[0];
  const auto number = [&](std::size_t i) { return std::stoull(words[i]); };
  if (command == "points") return points();
  if (command == "append" && words.size() == 4)
    return append(place_of(words[1]), static_cast<int>(number(2)), number(3));
  if (command == "check" && words.size() == 2) return check(place_of(words[1]));
  if (command == "tiny" && words.size() == 2) return tiny(words[1]);
  if (command == "power" && words.size() == 4) return print(cut_power(words[1], number(2), number(3), false));
  if (command == "lying-disk" && words.size() == 4)
    return print(cut_power(words[1], number(2), number(3), true));
  if (command == "disk" && words.size() == 4) return print(fail_disk(words[1], number(2), number(3)));
  if (command == "commits" && words.size() == 3) return commit_answers(place_of(words[1]), number(2));
  if (command == "pages" && words.size() == 3)
    return print(damage_pages(static_cast<std::int64_t>(number(1)), number(2)));
  if (command == "swapped" && words.size() >= 3)
    return print(damage_swapped_pages(words.size() > 3 ? words[3] : "", static_cast<std::int64_t>(number(1)),
                                      number(2)));
  if (command == "clocks") return print(turn_clocks());
  if (command == "signatures") return print(forge_signatures());
  if (command == "checkpoints") return print(forge_checkpoints());
  fmt::print(
      stderr,
      "usage: crash_tool points | append PLACE COUNT SEED | check PLACE | tiny FILE | power FOLDER STRIDE "
      "SEED | lying-disk FOLDER STRIDE SEED | disk FOLDER STRIDE SEED | commits PLACE SEED | pages TRIALS "
      "SEED | swapped TRIALS SEED [FOLDER] | clocks | signatures | checkpoints\n"
      "PLACE is a folder, or FOLDER,URL for a ledger in a PostgreSQL database\n");
  return kBadUsage;
}

}  // namespace
}  // namespace fieldprint::crash

int main(int argc, char** argv) {
  return fieldprint::crash::run(std::vector<std::string>(argv + 1, argv + argc));
}
