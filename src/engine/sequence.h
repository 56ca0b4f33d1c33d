#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "commit/receipt.h"
#include "core/request.h"
#include "kv/block_table.h"
#include "sampler/sampler.h"
#include "tokenizer/answer_text.h"

namespace fieldprint::engine {

using Clock = std::chrono::steady_clock;

/// A commit whose blocks have not all been hashed again since it was sealed.
struct Mark {
  std::uint64_t moment = 0;  ///< of the cache, when it was sealed
  Digest digest{};           ///< of the blocks that it states
};

/// A sequence's commits as the engine's thread knows them. Commit 0 is the prompt, commit c the tokens with
/// which the c-th block that was not the prompt's became full, and the last one the answer.
struct Trail {
  std::int32_t next = 0;  ///< to be sealed; after damage, to be compared with what was sealed
  std::int32_t sealed = 0;
  std::int32_t checked = 0;  ///< the first so many had their blocks hashed again
  std::int32_t validated = 0;
  std::int32_t verdicts = 0;
  std::int32_t reexecuted = 0;
  std::deque<Mark> marks;    ///< of commits [checked, sealed)
  std::int32_t effects = 0;  ///< that wait for commits
  /// Sums of the anchors' mass before the first token of each block since commit `checked`, by the number of
  /// output tokens in them.
  std::map<std::int64_t, std::vector<double>> mass;
};

/// Text that waits for the commit of the token that completed it.
struct HeldText {
  std::int32_t commit = 0;
  std::string text;
};

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
  std::int32_t row = -1;                  ///< of its logits in the current step; -1: none
  /// After damage, while suspect tokens are computed again: how many are known to be right.
  std::optional<std::int64_t> confirmed;

  tokenizer::AnswerText text;
  core::Answer answer;
  std::vector<double> mass_sum;  ///< [layers], over the output tokens so far
  std::optional<Clock::time_point> admitted;
  std::optional<Clock::time_point> first_token;

  Trail trail;
  std::deque<HeldText> held;               ///< by validation
  std::optional<commit::Receipt> receipt;  ///< held in the same way
  std::optional<Clock::time_point> ended;  ///< when the answer was complete
  bool finished = false;                   ///< the answer is complete; its commits may not be validated
  bool finite = true;                      ///< every activation was, in every step so far
  bool dropped = false;                    ///< failed or cancelled; leaves at the end of the step

  /// Tokens that may be computed: all, or those that are confirmed.
  std::span<const std::int32_t> known() const {
    return std::span(tokens).first(static_cast<std::size_t>(known_tokens()));
  }
  std::int64_t known_tokens() const { return confirmed.value_or(static_cast<std::int64_t>(tokens.size())); }
  /// Whether there are tokens to compute.
  bool active() const { return !dropped && (!finished || confirmed.has_value()); }

  /// The commit that covers the token at a position.
  std::int32_t commit_of(std::int64_t position) const;
  /// Of the first `commits` commits without the answer's: output tokens that they cover, blocks that they
  /// hold.
  std::int64_t outputs_in(std::int32_t commits) const;
  std::int64_t blocks_in(std::int32_t commits) const;
  /// Of blocks of the table, which are sealed.
  core::BlockRecord block_record(std::int64_t block, const Digest& digest) const;
  void add_mass(const std::vector<float>& by_layer);
  std::vector<float> mean_mass() const;
  /// Digests of the blocks as they are.
  std::vector<core::BlockRecord> block_records() const;
  std::int64_t prompt_tokens() const { return static_cast<std::int64_t>(request.prompt.size()); }
  std::int64_t left() const { return known_tokens() - table.size(); }
};

/// A generated token as answers give it.
core::OutputToken output_token(const sampler::Pick& pick);

}  // namespace fieldprint::engine
