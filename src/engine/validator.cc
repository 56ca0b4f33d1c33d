#include "engine/validator.h"

#include <algorithm>

#include "base/check.h"

namespace fieldprint::engine {

bool Validator::samples(const Digest& leaf, double own) const {
  if (share_ >= 1) return true;
  Sha256 hash;
  hash.update(salt_);
  hash.update(leaf);
  const Digest drawn = hash.finish();
  std::uint32_t number = 0;
  for (std::size_t i = 0; i < 4; ++i) number = number << 8 | drawn[i];
  return static_cast<double>(number) < share_ * own * 0x1p32;
}

void Validator::durable(Commit commit, const Digest& leaf, bool sampled) {
  Life& life = trajectories_[commit.trajectory];
  if (life.checks.empty()) life.first = commit.number;
  CHECK(commit.number == life.first + static_cast<std::int32_t>(life.checks.size()),
        "commit {} of trajectory {} is out of order", commit.number, commit.trajectory);
  life.checks.push_back({.leaf = leaf, .sampled = sampled, .reexecuted = false, .backend = {}});
}

void Validator::pages_checked(Trajectory trajectory, std::int32_t commits, std::int64_t blocks) {
  Life& life = trajectories_[trajectory];
  life.pages = std::max(life.pages, commits);
  life.blocks = blocks;
}

void Validator::reexecuted(Commit commit, const std::string& backend) {
  const auto found = trajectories_.find(commit.trajectory);
  if (found == trajectories_.end()) return;
  Life& life = found->second;
  const std::int32_t index = commit.number - life.first;
  CHECK(index >= 0, "commit {} of trajectory {} had its verdict", commit.number, commit.trajectory);
  if (index >= static_cast<std::int32_t>(life.checks.size())) return;
  Check& check = life.checks[static_cast<std::size_t>(index)];
  check.reexecuted = true;
  check.backend = backend;
}

void Validator::cut(Commit commit) {
  const auto found = trajectories_.find(commit.trajectory);
  if (found == trajectories_.end()) return;
  Life& life = found->second;
  const auto kept = static_cast<std::size_t>(std::max(commit.number - life.first, 0));
  if (life.checks.size() > kept) life.checks.resize(kept);
}

bool Validator::Life::due() const {
  return !checks.empty() && first < pages && (!checks.front().sampled || checks.front().reexecuted);
}

bool Validator::due() const {
  return std::ranges::any_of(trajectories_, [](const auto& each) { return each.second.due(); });
}

std::vector<Verdict> Validator::take_due() {
  std::vector<Verdict> verdicts;
  for (auto& [trajectory, life] : trajectories_) {
    for (; life.due(); ++life.first) {
      Check& check = life.checks.front();
      verdicts.push_back({{trajectory, life.first}, check.leaf, life.blocks, std::move(check.backend)});
      life.checks.erase(life.checks.begin());
    }
  }
  return verdicts;
}

}  // namespace fieldprint::engine
