#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "commit/segment.h"
#include "engine/committer.h"
#include "engine/engine_testing.h"
#include "store/data_folder.h"

/// An engine with a ledger in memory and anchors that a test revokes.
namespace fieldprint::engine::testing {

/// Every anchor is in force until its revocation is taken in, save while a test has it that nobody can read.
class FakeAnchors final : public AnchorsInForce {
 public:
  Status poll() override {
    if (Status status = readable(); !status) return status;
    const std::lock_guard lock(mutex_);
    for (const auto& [id, stands] : std::exchange(coming_, {})) {
      if (stands()) {
        revoked_.insert(id);
      } else {
        coming_.emplace(id, stands);
      }
    }
    return {};
  }
  bool fresh() override {
    if (outpaced) ++reads_;
    return !outpaced && readable().ok();
  }
  Status await_fresh(std::chrono::milliseconds) override { return readable(); }
  Status readable() const override {
    const std::lock_guard lock(mutex_);
    return unreadable_ ? Status(environment_error("the ledger cannot be read")) : Status();
  }
  std::uint64_t reads() const override { return reads_; }
  void learn(std::uint64_t, std::span<const store::Bytes>) override {}
  std::uint64_t size() const override { return taken_in; }
  Result<commit::AnchorRecord> admit(const Digest& id, const anchor::Use&) const override {
    if (Status status = in_force(id, 0); !status) return status.error();
    const std::string text = "anchor";
    return commit::AnchorRecord{id, {text.begin(), text.end()}};
  }
  Status in_force(const Digest& id, std::int64_t) const override {
    if (Status status = readable(); !status) return status;
    if (revoked(id)) return refuted("the anchor was revoked");
    if (on_in_force) on_in_force();
    return {};
  }
  bool revoked(const Digest& id) const override {
    const std::lock_guard lock(mutex_);
    return revoked_.contains(id);
  }
  void make_unreadable(bool unreadable) {
    const std::lock_guard lock(mutex_);
    unreadable_ = unreadable;
  }
  void revoke(const Digest& id) {
    const std::lock_guard lock(mutex_);
    revoked_.insert(id);
  }
  /// Taken in by the first poll that finds it in the ledger.
  void revoke_when(const Digest& id, std::function<bool()> stands) {
    const std::lock_guard lock(mutex_);
    coming_.emplace(id, std::move(stands));
  }
  std::atomic<std::uint64_t> taken_in = 0;
  std::atomic<bool> outpaced = false;  ///< others append faster than the ledger is read
  std::function<void()> on_in_force;   ///< after it was said that an anchor is; set before anything runs

 private:
  mutable std::mutex mutex_;
  std::set<Digest> revoked_;
  std::map<Digest, std::function<bool()>> coming_;
  bool unreadable_ = false;
  std::atomic<std::uint64_t> reads_ = 0;
};

/// Hands everything on to a committer, except that it can keep back that pages were checked, so that nothing
/// is validated until a test says so.
class HeldBack final : public Commits {
 public:
  explicit HeldBack(Commits& inner) : inner_(inner) {}
  bool records() const override { return true; }
  Status open(SequenceId id, const Request& request) override { return inner_.open(id, request); }
  void seal_prompt(SequenceId id, std::vector<core::BlockRecord> blocks) override {
    inner_.seal_prompt(id, std::move(blocks));
  }
  void seal_segment(SequenceId id, std::span<const core::OutputToken> tokens,
                    const core::BlockRecord& block) override {
    inner_.seal_segment(id, tokens, block);
  }
  void seal_answer(SequenceId id, const core::Answer& answer) override { inner_.seal_answer(id, answer); }
  void end(SequenceId id) override { inner_.end(id); }
  bool may_run(SequenceId id) const override { return inner_.may_run(id); }
  void pages_checked(SequenceId id, std::int32_t commits, std::int64_t blocks) override {
    if (holding) {
      kept_[id] = {commits, blocks};
    } else {
      inner_.pages_checked(id, commits, blocks);
    }
  }
  void refute(SequenceId id, std::int32_t commit, const std::string& reason) override {
    inner_.refute(id, commit, reason);
  }
  EffectId request(SequenceId id, std::int32_t commits) override { return inner_.request(id, commits); }
  News news() override { return inner_.news(); }
  void wait() override { inner_.wait(); }

  void let_go() {
    holding = false;
    for (const auto& [id, kept] : std::exchange(kept_, {})) {
      inner_.pages_checked(id, kept.first, kept.second);
    }
  }
  bool holding = false;

 private:
  Commits& inner_;
  std::map<SequenceId, std::pair<std::int32_t, std::int64_t>> kept_;
};

/// The record of every leaf, by its hash.
inline std::vector<store::Bytes> leaves_of(store::SignedLog& log) {
  return log.store().leaves(0, log.store().size().value()).value();
}

inline std::vector<commit::VerdictRecord> verdicts_of(store::SignedLog& log) {
  std::vector<commit::VerdictRecord> verdicts;
  for (const store::Bytes& leaf : leaves_of(log)) {
    if (commit::record_kind(leaf) == "verdict") verdicts.push_back(commit::decode_verdict(leaf).value());
  }
  return verdicts;
}

/// An engine whose answers are recorded.
struct Recorded {
  explicit Recorded(const Options& options = {.kv_blocks = 60}, const Committer::Options& commit = {},
                    std::unique_ptr<store::SignedLog> into = store::open_passing_log().value())
      : log(std::move(into)),
        committer(Committer::create(*log, anchors, tiny_file(),
                                    backend::select_backend("", 1).value()->name(), commit)
                      .value()),
        commits(*committer),
        served(options, tiny_file(), tiny_tokenizer(), &commits) {}

  EngineProbe probe() { return EngineProbe(*served); }
  /// Steps until the sequence has so many output tokens.
  void generate(SequenceId id, std::int64_t outputs) {
    for (int steps = 0; steps < 5000; ++steps) {
      ASSERT_TRUE(served->step());
      ASSERT_TRUE(served.errors.empty()) << served.errors.begin()->second.message;
      if (probe().outputs(id) >= outputs) return;
    }
    FAIL() << "no progress";
  }

  FakeAnchors anchors;
  std::unique_ptr<store::SignedLog> log;
  std::unique_ptr<Committer> committer;
  HeldBack commits;
  Served served;
};

/// A greedy request that no end token cuts short.
inline Request endless(std::size_t prompt_letters, std::int32_t max_tokens, std::uint64_t seed = 1) {
  Request out = request(prompt_letters, max_tokens, seed);
  out.sampling = {};
  return out;
}

inline Request anchored_endless(std::size_t anchor_letters, std::size_t prompt_letters,
                                std::int32_t max_tokens, std::uint64_t seed) {
  Request out = anchored(anchor_letters, prompt_letters, max_tokens, seed);
  out.sampling = {};
  out.anchors = {sha256("an anchor")};
  return out;
}

}  // namespace fieldprint::engine::testing
