#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "base/result.h"
#include "core/request.h"
#include "engine/sequence.h"
#include "kv/block_table.h"
#include "model/model.h"
#include "sampler/sampler.h"
#include "scheduler/scheduler.h"
#include "tokenizer/tokenizer.h"

namespace fieldprint::engine {

struct Options {
  std::int64_t kv_blocks = 0;        ///< blocks of the pool
  std::int32_t step_tokens = 512;    ///< tokens in one step
  std::int32_t prefill_chunk = 512;  ///< tokens of one sequence in one step
  std::int32_t max_batch = 8;        ///< sequences running
  bool prefix_cache = true;
  std::uint64_t placement_seed = 0;  ///< shuffles where blocks lie; never changes a result
  bool ignore_end = false;           ///< for measurements: answers always go on to max_tokens
};

/// What the caller hears of its requests, from within step().
struct Events {
  /// A token was generated.
  std::function<void(core::SequenceId)> token{};
  /// Text that a token completed, in order.
  std::function<void(core::SequenceId, std::string_view text)> text{};
  std::function<void(core::SequenceId, core::Answer)> finished{};
  std::function<void(core::SequenceId, Error)> failed{};
};

struct EngineStats {
  std::int64_t steps = 0;
  std::int64_t computed_tokens = 0;
  std::int64_t preemptions = 0;
  std::int64_t free_blocks = 0;  ///< neither held nor cached
  kv::CacheStats cache;
};

/// Continuous batching over one model and one backend. Single-threaded: one owner calls submit and step; the
/// backend spreads each operation over its threads.
class Engine {
 public:
  /// Model file, tokenizer and backend must outlive the engine. An error if the options are out of range.
  static Result<std::unique_ptr<Engine>> create(const weights::ModelFile& file,
                                                const tokenizer::Tokenizer& tokenizer,
                                                backend::Backend& backend, const Options& options,
                                                Events events);
  ~Engine();

  /// Queues a request. A request that no step could ever serve is refused with what to change.
  Result<core::SequenceId> submit(core::Request request);
  /// Drops a request, wherever it stands; no event follows. Events may call it, of any request.
  void cancel(core::SequenceId id);
  /// Computes one batch. False when there is nothing left to do.
  bool step();

  EngineStats stats() const;
  /// Bytes of a running or just finished sequence's blocks, in table order; called from `finished` only.
  std::vector<std::uint8_t> kv_bytes(core::SequenceId id) const;

 private:
  Engine(const weights::ModelFile& file, const tokenizer::Tokenizer& tokenizer, backend::Backend& backend,
         const Options& options, Events events, kv::BlockPool pool);

  Status check(const core::Request& request) const;
  kv::BlockKey pin_anchors(const core::Request& request);
  /// Unpins the anchors that no request uses any more. False if there were none.
  bool end_idle_leases();

  // step.cc, in the order of a step.
  scheduler::Decision decide();
  void release_preempted(const scheduler::Decision& decision);
  void admit(const scheduler::Decision& decision);
  std::vector<Sequence*> place_tokens(const scheduler::Decision& decision);
  /// The token after each sequence of the batch whose tokens are all computed, in order.
  std::vector<std::int32_t> compute(const std::vector<Sequence*>& batch);
  void sample(const std::vector<Sequence*>& batch, std::span<const std::int32_t> tokens);
  void append_token(Sequence& sequence, const sampler::Pick& pick, std::int32_t logit_row);
  void give_text(Sequence& sequence, const std::string& text);
  void finish(Sequence& sequence, core::FinishReason reason);
  void fail(core::SequenceId id, Error error);

  void await_admission(Sequence& sequence);
  std::vector<scheduler::SequenceView> waiting_views();
  scheduler::SequenceView view(const Sequence& sequence) const;
  /// Again, on the host, with the logprobs that the sequence asks for.
  Result<sampler::Pick> pick_with_logprobs(const Sequence& sequence, std::int32_t row);

  const weights::ModelFile& file_;
  const tokenizer::Tokenizer& tokenizer_;
  Options options_;
  Events events_;
  model::Model model_;
  kv::BlockPool pool_;
  kv::PrefixCache cache_;
  kv::BlockKey root_;
  /// By the key of the last anchor block. Anchors stay pinned after their last request, for the next one,
  /// until somebody needs the room.
  std::map<kv::BlockKey, kv::AnchorLease> leases_;
  scheduler::FairShare shares_;
  std::map<core::SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::vector<core::SequenceId> finished_;  ///< to be dropped at the end of the step
  bool stepping_ = false;
  core::SequenceId next_id_ = 1;
  EngineStats stats_;
};

}  // namespace fieldprint::engine
