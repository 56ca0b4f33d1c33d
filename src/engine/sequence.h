#pragma once

#include <chrono>
#include <optional>
#include <vector>

#include "core/request.h"
#include "kv/block_table.h"
#include "sampler/sampler.h"
#include "tokenizer/answer_text.h"

namespace fieldprint::engine {

using Clock = std::chrono::steady_clock;

/// A request under way.
struct Sequence {
  Sequence(core::SequenceId sequence_id, core::Request asked, kv::BlockTable blocks,
           const tokenizer::Tokenizer& tokenizer)
      : id(sequence_id),
        request(std::move(asked)),
        tokens(request.prompt),
        table(std::move(blocks)),
        text(tokenizer, request.stop) {}

  core::SequenceId id;
  core::Request request;
  std::vector<std::int32_t> tokens;         ///< prompt and output
  std::optional<sampler::SeenTokens> seen;  ///< the same as a set, where there is a repetition penalty
  kv::BlockTable table;                     ///< holds the first table.size() of them
  kv::BlockKey lease{};                     ///< of its anchors
  bool running = false;
  std::vector<kv::BlockKey> prefix_keys;  ///< of the known tokens but the last, while waiting
  std::int64_t step_tokens = 0;           ///< of the current step

  tokenizer::AnswerText text;
  core::Answer answer;
  std::vector<double> mass_sum;  ///< [layers], over the output tokens so far
  std::optional<Clock::time_point> admitted;
  std::optional<Clock::time_point> first_token;

  bool finite = true;    ///< every activation was, in every step so far
  bool dropped = false;  ///< cancelled by an event; leaves at the end of the step
  void add_mass(const std::vector<float>& by_layer);
  std::vector<float> mean_mass() const;
  /// Digests of the blocks as they are.
  std::vector<core::BlockRecord> block_records() const;
  std::int64_t prompt_tokens() const { return static_cast<std::int64_t>(request.prompt.size()); }
  std::int64_t left() const { return static_cast<std::int64_t>(tokens.size()) - table.size(); }
};

}  // namespace fieldprint::engine
