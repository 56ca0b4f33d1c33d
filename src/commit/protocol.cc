#include "commit/protocol.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace fieldprint::commit {

Protocol::Protocol(std::int32_t run_ahead) : run_ahead_(run_ahead) {
  CHECK(run_ahead >= 1, "a trajectory must be allowed one commit that is not validated");
}

const Protocol::Life& Protocol::life_of(Trajectory trajectory) const {
  const auto found = trajectories_.find(trajectory);
  CHECK(found != trajectories_.end(), "trajectory {} is not known", trajectory);
  return found->second;
}

Protocol::Life& Protocol::life_of(Trajectory trajectory) {
  const auto found = trajectories_.find(trajectory);
  CHECK(found != trajectories_.end(), "trajectory {} is not known", trajectory);
  return found->second;
}

Protocol::Life* Protocol::life_concerned(Commit commit) {
  const auto found = trajectories_.find(commit.trajectory);
  if (found == trajectories_.end()) return nullptr;
  Life& life = found->second;
  CHECK(commit.number >= 0 && commit.number < life.sealed, "commit {} of trajectory {} was never sealed",
        commit.number, commit.trajectory);
  return life.refuted && commit.number >= *life.refuted ? nullptr : &life;
}

bool Protocol::open(Trajectory trajectory, std::vector<Digest> anchors) {
  CHECK(!known(trajectory), "trajectory {} was opened already", trajectory);
  if (std::any_of(anchors.begin(), anchors.end(), [&](const Digest& id) { return revoked(id); })) {
    return false;
  }
  trajectories_[trajectory].anchors = std::move(anchors);
  return true;
}

Protocol::Commit Protocol::seal(Trajectory trajectory) {
  CHECK(may_run(trajectory), "trajectory {} may not run", trajectory);
  return {trajectory, life_of(trajectory).sealed++};
}

void Protocol::acknowledge(Commit commit) {
  Life* const life = life_concerned(commit);
  if (life == nullptr) return;
  CHECK(commit.number == life->durable, "commit {} of trajectory {} is acknowledged out of order",
        commit.number, commit.trajectory);
  ++life->durable;
}

void Protocol::validate(Commit commit) {
  Life* const life = life_concerned(commit);
  if (life == nullptr) return;
  CHECK(commit.number == life->validated && commit.number < life->durable,
        "commit {} of trajectory {} is validated out of order", commit.number, commit.trajectory);
  ++life->validated;
  forget_if_settled(commit.trajectory);
}

void Protocol::refute(Commit commit, const std::string& reason) {
  Life* const life = life_concerned(commit);
  if (life == nullptr) return;
  CHECK(commit.number >= life->validated, "commit {} of trajectory {} is refuted, but was validated",
        commit.number, commit.trajectory);
  if (!life->refuted) life->reason = reason;
  life->refuted = commit.number;
  forget_if_settled(commit.trajectory);
}

void Protocol::revoke(const Digest& anchor, const std::string& reason) {
  revoked_.insert(anchor);
  suspend(anchor, reason);
}

void Protocol::suspend(const Digest& anchor, const std::string& reason) {
  std::vector<Trajectory> concerned;
  for (auto& [trajectory, life] : trajectories_) {
    if (std::find(life.anchors.begin(), life.anchors.end(), anchor) == life.anchors.end()) continue;
    if (!life.refuted) life.reason = reason;
    life.refuted = life.validated;
    life.revoked = true;
    concerned.push_back(trajectory);
  }
  for (const Trajectory trajectory : concerned) forget_if_settled(trajectory);
}

Protocol::Effect Protocol::request(Trajectory trajectory) {
  Life& life = life_of(trajectory);
  CHECK(!life.closed, "trajectory {} is closed", trajectory);
  ++life.effects;
  effects_[next_effect_] = {trajectory, life.sealed};
  return next_effect_++;
}

void Protocol::close(Trajectory trajectory) {
  Life& life = life_of(trajectory);
  CHECK(!life.closed, "trajectory {} was closed already", trajectory);
  life.closed = true;
  forget_if_settled(trajectory);
}

void Protocol::forget_if_settled(Trajectory trajectory) {
  const Life& life = life_of(trajectory);
  const bool settled = life.validated == life.refuted.value_or(life.sealed);
  if (life.closed && settled && life.effects == 0) trajectories_.erase(trajectory);
}

bool Protocol::may_run(Trajectory trajectory) const {
  const Life& life = life_of(trajectory);
  return !life.refuted && !life.closed && life.sealed - life.validated < run_ahead_;
}

bool Protocol::stopped(Trajectory trajectory) const { return life_of(trajectory).refuted.has_value(); }

const std::string& Protocol::reason(Trajectory trajectory) const { return life_of(trajectory).reason; }

CommitState Protocol::state(Commit commit) const {
  const Life& life = life_of(commit.trajectory);
  CHECK(commit.number >= 0 && commit.number < life.sealed, "commit {} of trajectory {} was never sealed",
        commit.number, commit.trajectory);
  if (life.refuted && commit.number >= *life.refuted) return CommitState::kRefuted;
  if (commit.number < life.validated) return CommitState::kValidated;
  return commit.number < life.durable ? CommitState::kDurable : CommitState::kSealed;
}

std::int32_t Protocol::validated(Trajectory trajectory) const { return life_of(trajectory).validated; }

std::int32_t Protocol::sealed(Trajectory trajectory) const { return life_of(trajectory).sealed; }

std::optional<Protocol::Commit> Protocol::to_validate(Trajectory trajectory) const {
  const Life& life = life_of(trajectory);
  if (life.validated >= std::min(life.durable, life.refuted.value_or(life.durable))) return std::nullopt;
  return Commit{trajectory, life.validated};
}

Protocol::Release Protocol::take(Effect effect) {
  const auto found = effects_.find(effect);
  CHECK(found != effects_.end(), "effect {} is not pending", effect);
  const auto [trajectory, needs] = found->second;
  Life& life = life_of(trajectory);
  const bool withheld = life.revoked || needs > life.refuted.value_or(needs);
  if (!withheld && needs > life.validated) return Release::kPending;
  effects_.erase(found);
  --life.effects;
  forget_if_settled(trajectory);
  return withheld ? Release::kWithheld : Release::kReleased;
}

}  // namespace fieldprint::commit
