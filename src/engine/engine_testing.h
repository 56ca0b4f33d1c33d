#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "backend/select.h"
#include "engine/engine.h"
#include "kv/swap_testing.h"
#include "weights/tiny_file_testing.h"

namespace fieldprint::engine {

/// What tests reach into an engine for.
struct EngineProbe {
  explicit EngineProbe(Engine& it) : engine(it) {}
  Engine& engine;

  std::int64_t full_blocks(core::SequenceId id) const {
    return engine.sequences_.at(id)->table.sealed_blocks();
  }
  std::int64_t outputs(core::SequenceId id) const {
    return static_cast<std::int64_t>(engine.sequences_.at(id)->answer.output.size());
  }
  const Trail& trail(core::SequenceId id) const { return engine.sequences_.at(id)->trail; }
  bool recomputing(core::SequenceId id) const { return engine.sequences_.at(id)->confirmed.has_value(); }
  /// Flips a bit of a resident block of the sequence.
  void damage(core::SequenceId id, std::int64_t block, std::int64_t byte = 0, std::uint8_t bit = 1) {
    flip(engine.sequences_.at(id)->table.blocks()[static_cast<std::size_t>(block)], byte, bit);
  }
  void flip(kv::BlockId block, std::int64_t byte, std::uint8_t bit) {
    backend::Backend& backend = engine.model_.backend();
    std::uint8_t value = 0;
    backend.download(&value, engine.pool_.data(block) + byte, 1);
    value ^= bit;
    backend.upload(engine.pool_.data(block) + byte, &value, 1);
  }
  /// The same in a cached block, and in any sealed one, chosen by a number.
  void damage_cached(std::int64_t byte = 0) {
    for (kv::BlockId block = 0; block < engine.pool_.blocks(); ++block) {
      if (engine.cache_.state(block) != kv::BlockState::kCached) continue;
      flip(block, byte, 1);
      return;
    }
    FAIL() << "no block is cached";
  }
  /// False if none is sealed.
  bool damage_any(std::uint64_t which, std::int64_t byte, std::uint8_t bit = 1) {
    std::vector<kv::BlockId> sealed;
    for (kv::BlockId block = 0; block < engine.pool_.blocks(); ++block) {
      if (engine.cache_.sealed(block)) sealed.push_back(block);
    }
    if (!sealed.empty()) flip(sealed[which % sealed.size()], byte, bit);
    return !sealed.empty();
  }
  std::int64_t block_bytes() const { return engine.pool_.geometry().block_bytes(); }
  /// Flips bits of a swapped block, chosen by a number, where they lie. False if nothing is swapped.
  bool damage_swapped(std::uint64_t which, std::int64_t byte, std::uint8_t bits = 1) {
    return kv::SwapProbe(engine.cache_).alter_any(which, byte, bits);
  }
  /// What the scrubber does when it comes by: hashes every sealed block.
  void scrub_all() {
    std::vector<kv::BlockId> sealed;
    for (kv::BlockId block = 0; block < engine.pool_.blocks(); ++block) {
      if (engine.cache_.sealed(block)) sealed.push_back(block);
    }
    engine.cache_.begin_check(sealed);
    engine.heed_checks(true);
  }
};

}  // namespace fieldprint::engine

/// What the engine's tests share: a tiny model, requests, and an engine that remembers what it said.
namespace fieldprint::engine::testing {

using core::Request;
using core::SequenceId;

inline constexpr std::int32_t kEndToken = 2;
inline constexpr std::int64_t kContext = 600;

/// `count` letters of the tiny vocabulary after a sink.
inline std::vector<std::int32_t> letters(std::size_t count, std::uint64_t seed) {
  weights::testing::Noise noise(seed);
  std::vector<std::int32_t> tokens = {1};
  while (tokens.size() <= count) tokens.push_back(3 + static_cast<std::int32_t>(noise.next() % 26));
  return tokens;
}

inline Request request(std::size_t prompt_letters, std::int32_t max_tokens, std::uint64_t seed = 1) {
  Request out;
  out.prompt = letters(prompt_letters, seed);
  out.sampling = {.temperature = 1.0F, .seed = seed};
  out.max_tokens = max_tokens;
  out.logprobs = 2;
  return out;
}

/// The same anchors for every seed.
inline Request anchored(std::size_t anchor_letters, std::size_t prompt_letters, std::int32_t max_tokens,
                        std::uint64_t seed) {
  Request out = request(prompt_letters, max_tokens, seed);
  const std::vector<std::int32_t> anchors = letters(anchor_letters, 99);
  out.prompt.insert(out.prompt.begin() + 1, anchors.begin() + 1, anchors.end());
  out.layout.anchor_tokens = static_cast<std::int64_t>(anchor_letters);
  return out;
}

inline const weights::ModelFile& tiny_file() {
  static const weights::testing::TinyFile tiny;
  return tiny.file();
}

inline const tokenizer::Tokenizer& tiny_tokenizer() {
  static const auto tokenizer = tokenizer::Tokenizer::make(tiny_file().vocabulary()).value();
  return *tokenizer;
}

/// An engine over the tiny model that remembers what it said.
class Served {
 public:
  explicit Served(const Options& options, const weights::ModelFile& file = tiny_file(),
                  const tokenizer::Tokenizer& tokenizer = tiny_tokenizer(), Commits* commits = nullptr)
      : backend_(backend::select_backend("", 1).value()),
        engine_(
            Engine::create(
                file, tokenizer, *backend_, options,
                {.text =
                     [this](SequenceId id, std::string_view text) {
                       streamed[id] += text;
                       if (on_text) on_text(id);
                     },
                 .finished =
                     [this](SequenceId id, core::Answer answer) {
                       kv[id] = engine_->kv_bytes(id);
                       order.push_back(id);
                       answers.emplace(id, std::move(answer));
                       if (on_finished) on_finished(id);
                     },
                 .failed = [this](SequenceId id, Error error) { errors.emplace(id, std::move(error)); },
                 .recorded = [this](SequenceId id,
                                    const commit::Receipt& receipt) { receipts.emplace(id, receipt); },
                 .outage = [this](const std::optional<LedgerOutage>& outage) { outages.push_back(outage); },
                 .validated = [this](SequenceId id,
                                     const Validation& found) { validated.emplace(id, found); },
                 .notice = [this](std::string_view text) { notices.emplace_back(text); }},
                commits)
                .value()) {}

  Engine& operator*() { return *engine_; }
  Engine* operator->() { return engine_.get(); }
  SequenceId submit(Request request) { return engine_->submit(std::move(request)).value(); }
  void finish() {
    while (engine_->step()) continue;
  }
  core::Answer answer(Request request) {
    const SequenceId id = submit(std::move(request));
    finish();
    return answers.at(id);
  }

  std::map<SequenceId, std::string> streamed;
  std::map<SequenceId, core::Answer> answers;
  std::map<SequenceId, std::vector<std::uint8_t>> kv;
  std::map<SequenceId, Error> errors;
  std::vector<SequenceId> order;  ///< in which answers were finished
  std::function<void(SequenceId)> on_text;
  std::function<void(SequenceId)> on_finished;
  std::map<SequenceId, commit::Receipt> receipts;
  std::vector<std::optional<LedgerOutage>> outages;  ///< as they began and ended
  std::map<SequenceId, Validation> validated;
  std::vector<std::string> notices;

 private:
  std::unique_ptr<backend::Backend> backend_;
  std::unique_ptr<Engine> engine_;
};

inline void expect_same(const core::Answer& a, const core::Answer& b) {
  EXPECT_EQ(a.output, b.output);
  EXPECT_EQ(a.text, b.text);
  EXPECT_EQ(a.finish_reason, b.finish_reason);
  EXPECT_EQ(a.blocks, b.blocks);
  EXPECT_EQ(a.anchor_mass, b.anchor_mass);
}

}  // namespace fieldprint::engine::testing
