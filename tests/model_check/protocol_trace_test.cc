// Drives commit::Protocol through what simulations of protocol.pml print, and compares after every transition
// what the model and the code say: known trajectories, whether they may run, the state of every commit, and
// what take would answer for every pending effect. Reads traces from stdin, one after another, each begun by
// "BEGIN <name>".

#include <fmt/format.h>

#include <iostream>
#include <map>
#include <optional>
#include <sstream>
#include <string>

#include "commit/protocol.h"

namespace fieldprint::commit {
namespace {

constexpr std::int32_t kRunAhead = 2;  // RUN_AHEAD of the model
constexpr std::int32_t kNever = 15;    // NEVER
constexpr int kReleased = 2;           // RELEASED

Digest anchor(int number) { return Digest{static_cast<std::uint8_t>(number + 1)}; }

// What the model says of one trajectory.
struct Stated {
  bool may_run = false;
  bool stopped = false;
  std::int32_t sealed = 0, durable = 0, validated = 0, refuted = kNever;

  CommitState of(std::int32_t commit) const {
    if (commit >= refuted) return CommitState::kRefuted;
    if (commit < validated) return CommitState::kValidated;
    return commit < durable ? CommitState::kDurable : CommitState::kSealed;
  }
};

class Driver {
 public:
  // The difference between model and code that this line shows, if there is one.
  std::optional<std::string> take_line(const std::string& line) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "TRACE") return transition(words);
    if (kind == "STATE") return compare(words);
    if (kind == "EFFECT") return compare_effect(words);
    if (kind == "GONE") {
      std::uint64_t trajectory = 0;
      words >> trajectory;
      if (protocol_.known(trajectory)) return fmt::format("trajectory {} is known to the code", trajectory);
    }
    return {};
  }

  const std::map<std::string, std::int64_t>& transitions() const { return transitions_; }
  std::int64_t comparisons() const { return comparisons_; }

  void begin() {
    protocol_ = Protocol(kRunAhead);
    effects_.clear();
  }

 private:
  std::optional<std::string> transition(std::istringstream& words) {
    std::string name;
    std::uint64_t first = 0;
    std::int32_t second = 0;
    words >> name >> first >> second;
    ++transitions_[name];
    const Protocol::Commit commit = {first, second};
    if (name == "open") {
      // Trajectory 0 binds both anchors, the other one the first.
      const std::vector<Digest> bound =
          first == 0 ? std::vector<Digest>{anchor(0), anchor(1)} : std::vector<Digest>{anchor(0)};
      if (protocol_.open(first, bound) != (second == 1)) return "open: the code does not agree";
    } else if (name == "seal") {
      if (!protocol_.may_run(first)) return "seal: the code does not let it run";
      protocol_.seal(first);
    } else if (name == "acknowledge") {
      protocol_.acknowledge(commit);
    } else if (name == "validate") {
      if (protocol_.to_validate(first) != commit) return "validate: the code would not validate this one";
      protocol_.validate(commit);
    } else if (name == "refute") {
      protocol_.refute(commit, "bad");
    } else if (name == "revoke") {
      protocol_.revoke(anchor(static_cast<int>(first)), "revoked");
    } else if (name == "request") {
      effects_[second] = protocol_.request(first);
    } else if (name == "release" || name == "withhold") {
      const auto expected = name == "release" ? Protocol::Release::kReleased : Protocol::Release::kWithheld;
      if (protocol_.take(effects_.at(static_cast<std::int32_t>(first))) != expected)
        return name + ": the code does not agree";
      effects_.erase(static_cast<std::int32_t>(first));
    } else if (name == "close") {
      protocol_.close(first);
    } else if (name == "crash") {
      begin();
    } else if (name != "recover") {
      return "an unknown transition";
    }
    return {};
  }

  std::optional<std::string> compare(std::istringstream& words) {
    std::uint64_t trajectory = 0;
    Stated stated;
    std::string label;
    words >> trajectory >> label >> stated.may_run >> label >> stated.stopped >> label >> stated.sealed >>
        label >> stated.durable >> label >> stated.validated >> label >> stated.refuted;
    if (!words) return "a line that cannot be read";
    ++comparisons_;
    if (!protocol_.known(trajectory)) return fmt::format("trajectory {} is unknown to the code", trajectory);
    if (protocol_.may_run(trajectory) != stated.may_run) return "may_run differs";
    if (protocol_.stopped(trajectory) != stated.stopped) return "stopped differs";
    if (protocol_.sealed(trajectory) != stated.sealed) return "sealed differs";
    if (protocol_.validated(trajectory) != stated.validated) return "validated differs";
    for (std::int32_t n = 0; n < stated.sealed; ++n) {
      if (protocol_.state({trajectory, n}) != stated.of(n))
        return fmt::format("the state of commit {} differs", n);
    }
    return {};
  }

  // take is asked of a copy, because an effect is answered for once.
  std::optional<std::string> compare_effect(std::istringstream& words) {
    std::int32_t effect = 0;
    int outcome = 0;
    words >> effect >> outcome;
    if (!words) return "a line that cannot be read";
    ++comparisons_;
    const auto expected = outcome == 1           ? Protocol::Release::kPending
                          : outcome == kReleased ? Protocol::Release::kReleased
                                                 : Protocol::Release::kWithheld;
    Protocol copy = protocol_;
    if (copy.take(effects_.at(effect)) == expected) return {};
    return fmt::format("what becomes of effect {} differs", effect);
  }

  Protocol protocol_{kRunAhead};
  std::map<std::int32_t, Protocol::Effect> effects_;  // by the model's number
  std::map<std::string, std::int64_t> transitions_;
  std::int64_t comparisons_ = 0;
};

int drive() {
  Driver driver;
  std::string trace;
  std::string last;
  std::int64_t traces = 0;
  for (std::string line; std::getline(std::cin, line);) {
    if (line.starts_with("BEGIN ")) {
      trace = line.substr(6);
      ++traces;
      driver.begin();
      continue;
    }
    if (line.starts_with("TRACE ")) last = line;
    if (const auto difference = driver.take_line(line)) {
      fmt::print("trace {}: {}, after \"{}\", at \"{}\"\n", trace, *difference, last, line);
      return 1;
    }
  }
  fmt::print("traces {} comparisons {}", traces, driver.comparisons());
  for (const auto& [name, count] : driver.transitions()) fmt::print(" {} {}", name, count);
  fmt::print("\n");
  return 0;
}

}  // namespace
}  // namespace fieldprint::commit

int main() { return fieldprint::commit::drive(); }
