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
#include "engine/commits.h"
#include "engine/scrubber.h"
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
  kv::SwapOptions swap = {};         ///< for blocks evicted from the prefix cache; without that, without use
  std::uint64_t placement_seed = 0;  ///< shuffles where blocks lie; never changes a result
  bool ignore_end = false;           ///< for measurements: answers always go on to max_tokens
  bool hash_pages = true;            ///< for measurements: without, blocks have no digests
  double scrub_share = 0.001;        ///< of the time, spent on hashing resident blocks again; 0: none
};

/// How an answer's commits were validated.
struct Validation {
  std::int32_t commits = 0;
  std::int32_t verdicts = 0;    ///< records that say so
  std::int32_t reexecuted = 0;  ///< commits that another backend computed again
};

/// What the caller hears of its requests, from within step(). An answer that is recorded is finished,
/// recorded and validated, in this order where its text is not held; until it is validated it is provisional,
/// its logprobs and anchor mass like its text, and may still fail. Where its text is held, nothing that tells
/// its tokens comes before they are validated: `text` when they are, and `recorded` and `finished`, in this
/// order, directly before `validated`.
struct Events {
  /// A token was generated.
  std::function<void(core::SequenceId)> token{};
  /// Text that a token completed, in order.
  std::function<void(core::SequenceId, std::string_view text)> text{};
  std::function<void(core::SequenceId, core::Answer)> finished{};
  /// No more comes of it. Of a recorded one the error says how many of its tokens hold.
  std::function<void(core::SequenceId, Error)> failed{};
  /// The answer's record is durable; of a held one also validated.
  std::function<void(core::SequenceId, const commit::Receipt&)> recorded{};
  /// The ledger fails, and answers wait for it as LedgerOutage says; or, with nothing, it is back.
  std::function<void(const std::optional<LedgerOutage>&)> outage{};
  /// All commits of a recorded answer are validated.
  std::function<void(core::SequenceId, const Validation&)> validated{};
  /// Something went wrong that costs time and no answer: the swap area fails, or gave altered bytes back.
  std::function<void(std::string_view)> notice{};
};

struct EngineStats {
  std::int64_t steps = 0;
  std::int64_t computed_tokens = 0;
  std::int64_t preemptions = 0;
  std::int64_t free_blocks = 0;  ///< neither held nor cached
  std::int64_t scrubbed_blocks = 0;
  /// Whose bytes had changed, in the pool or in the swap area, or that were computed twice with two digests;
  /// dropped and computed again.
  std::int64_t damaged_blocks = 0;
  kv::CacheStats cache;
};

/// Continuous batching over one model and one backend. Single-threaded: one owner calls submit and step; the
/// backend spreads each operation over its threads.
///
/// With `commits`, every trajectory is recorded while it is generated, and validated behind that.
///
/// Damaged pages. A page of a resident block that no longer has its digest was damaged after the block was
/// last good, so everything computed since then by a sequence that holds it is suspect: its commits sealed
/// after that moment, and its tokens after those. The block is dropped, with all that was computed after it,
/// and the sequences that hold it compute their tokens again, from what is left in the cache. The suspect
/// tokens are given back one by one: each must be the model's choice again, and each block that they fill
/// must get the digest that its commit states; then nothing has happened but time. At the first difference
/// the commit that states it is refuted and the trajectory stops with the commits before it. Text of suspect
/// tokens may have been given out, and stands if the tokens do. Logprobs are in no commit: those computed
/// again take the place of the suspect ones in an answer that was not given out yet; in one that was, they
/// must be the same, as must the anchors' mass, or the commit of the token is refuted. So what is validated
/// holds what was computed from good pages. Blocks that a table gives up are checked first, so that commits
/// before a preemption depend on no page after it. Pages damaged between being written and being full and
/// hashed are found by computing again alone. A sequence that does so by chance, because it fills a block
/// that is cached, and gets another digest, gives up what PrefixCache::take_suspects names, before a token is
/// chosen from it.
///
/// A block that comes back from the swap area altered is dropped before anything uses it, with all swapped
/// ones that were computed after it, and its tokens are computed again. No trajectory depends on it: who held
/// it had it checked before it was given up, and who did not never saw it.
class Engine {
 public:
  /// Model file, tokenizer, backend and commits must outlive the engine; without `commits` nothing is
  /// recorded. An error if the options are out of range.
  static Result<std::unique_ptr<Engine>> create(const weights::ModelFile& file,
                                                const tokenizer::Tokenizer& tokenizer,
                                                backend::Backend& backend, const Options& options,
                                                Events events, Commits* commits = nullptr);
  ~Engine();

  /// Queues a request. A request that no step could ever serve is refused with what to change.
  Result<core::SequenceId> submit(core::Request request);
  /// Drops a request, wherever it stands; no event follows. Events may call it, of any request.
  void cancel(core::SequenceId id);
  /// Asks whether an external effect of the sequence may leave: when all tokens that it has so far are
  /// covered by commits that are validated, and no anchor that it is bound to was revoked. Tokens are covered
  /// when they fill a block or the answer ends, so the outcome of an effect asked for in the middle of a
  /// block waits for that. `outcome` is called once, from within step(). A sequence that is not there is the
  /// caller's error.
  Status request_effect(core::SequenceId id, std::function<void(const EffectOutcome&)> outcome);
  /// Computes one batch. False when there is nothing left to do or to wait for.
  bool step();

  EngineStats stats() const;
  /// What the last step found of the ledger; nothing while it works.
  const std::optional<LedgerOutage>& outage() const { return outage_; }
  /// Bytes of a running or just finished sequence's blocks, in table order; called from `finished` only. Of a
  /// finished one whose text was held there may be none left.
  std::vector<std::uint8_t> kv_bytes(core::SequenceId id) const;

 private:
  friend struct EngineProbe;  // tests damage pages through it
  Engine(const weights::ModelFile& file, const tokenizer::Tokenizer& tokenizer, backend::Backend& backend,
         const Options& options, Events events, Commits* commits, kv::BlockPool pool,
         std::unique_ptr<kv::SwapArea> swap);

  Status check(const core::Request& request) const;
  kv::BlockKey pin_anchors(const core::Request& request);
  /// Unpins the anchors that no request uses any more. False if there were none.
  bool end_idle_leases();

  // step.cc, in the order of a step.
  scheduler::Decision decide();
  scheduler::Decision plan();
  void release_preempted(const scheduler::Decision& decision);
  void admit(const scheduler::Decision& decision);
  void report_swap();
  std::vector<Sequence*> place_tokens(const scheduler::Decision& decision);
  /// The token after each sequence of the batch whose tokens are all computed, in order.
  std::vector<std::int32_t> compute(const std::vector<Sequence*>& batch);
  void sample(const std::vector<Sequence*>& batch, std::span<const std::int32_t> tokens);
  void append_token(Sequence& sequence, const sampler::Pick& pick, std::int32_t logit_row);
  void count_token(Sequence& sequence, std::int32_t token, std::int32_t logit_row);
  void give_text(Sequence& sequence, const std::string& text);
  void finish(Sequence& sequence, core::FinishReason reason);
  void fail(core::SequenceId id, Error error);
  void drop(core::SequenceId id);

  // commit_step.cc: what a step has to do with commits and with what validation needs of it.
  void heed_news();
  void heed(CommitNews& news);
  void seal_commits();
  void seal_commits(Sequence& sequence);
  void seal_answer(Sequence& sequence);
  void complete(Sequence& sequence);
  void await_news();

  // pages.cc: resident blocks are hashed again, and computed again where they are damaged.
  void check_awaited_pages();
  void begin_checks(const std::vector<core::SequenceId>& awaited);
  /// What came of checks since the last time, or with `wait` of all. False if there was damage.
  bool heed_checks(bool wait);
  /// Those of the commits that are not checked, at once. False if there was damage.
  bool check_pages(Sequence& sequence);
  static std::span<const kv::BlockId> held_blocks(const Sequence& sequence);
  void note_checked(Sequence& sequence);
  void lose(kv::BlockId damaged);
  std::vector<kv::BlockId> rewind(Sequence& sequence, kv::BlockId lost);
  void confirm_token(Sequence& sequence, const sampler::Pick& pick, std::int32_t logit_row);
  void confirm_answer(Sequence& sequence);
  void diverge(Sequence& sequence, std::int32_t commit, const std::string& what);
  bool crowded(const scheduler::Decision& decision) const;
  bool release_finished();
  bool pages_hold(const std::vector<core::SequenceId>& leaving);

  void await_admission(Sequence& sequence);
  std::vector<scheduler::SequenceView> waiting_views();
  scheduler::SequenceView view(const Sequence& sequence) const;
  /// Again, on the host, with the logprobs that the sequence asks for.
  Result<sampler::Pick> pick_with_logprobs(const Sequence& sequence, std::int32_t row);

  const weights::ModelFile& file_;
  const tokenizer::Tokenizer& tokenizer_;
  Options options_;
  Events events_;
  NoCommits no_commits_;
  Commits& commits_;
  model::Model model_;
  kv::BlockPool pool_;
  kv::PrefixCache cache_;
  Scrubber scrubber_;
  kv::BlockKey root_;
  /// By the key of the last anchor block. Anchors stay pinned after their last request, for the next one,
  /// until somebody needs the room.
  std::map<kv::BlockKey, kv::AnchorLease> leases_;
  scheduler::FairShare shares_;
  std::map<core::SequenceId, std::unique_ptr<Sequence>> sequences_;
  std::vector<core::SequenceId> ended_;  ///< to be dropped at the end of the step
  struct Effect {
    core::SequenceId id;
    std::function<void(const EffectOutcome&)> outcome;
  };
  std::map<EffectId, Effect> effects_;  ///< that wait for their outcome
  std::uint64_t swap_damage_told_ = 0;
  bool stepping_ = false;
  core::SequenceId next_id_ = 1;
  EngineStats stats_;
  std::optional<LedgerOutage> outage_;
};

}  // namespace fieldprint::engine
