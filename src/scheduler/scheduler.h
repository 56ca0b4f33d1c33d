#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/block_layout.h"
#include "core/ids.h"
#include "scheduler/fair_share.h"

/// Continuous batching with chunked prefill. decide() only decides: it is a pure function of plain views,
/// and the engine carries the decision out.
namespace fieldprint::scheduler {

/// A sequence as the scheduler sees it. A sequence decodes when exactly one token is left to compute; it
/// prefills when more are (a prompt, or the recomputation after a preemption).
struct SequenceView {
  core::SequenceId id = 0;
  std::uint64_t arrival = 0;  ///< order of arrival, distinct; kept through preemptions
  core::TenantId tenant = 0;
  core::BlockLayout layout = {};
  std::int64_t tokens = 0;  ///< known tokens, prompt and generated, all to be computed; ≥ 1
  /// Of these in the KV cache; waiting: in the matching prefix, cached or swapped; < tokens.
  std::int64_t computed = 0;
  /// The most tokens it may come to hold in the KV cache, ≥ tokens. A sequence that would not fit alone is
  /// impossible. Pass `tokens` to find out only when it grows too long.
  std::int64_t limit_tokens = 0;
  bool tail_shared = false;  ///< running: BlockTable::tail_shared()
  /// Running: BlockTable::reclaimable_blocks(), what its preemption gives back. 0 if waiting.
  std::int64_t reclaimable_blocks = 0;
  /// Waiting: blocks of the matching prefix that are only cached: available now, and taken by its
  /// admission (PrefixCache::Probe::cached). 0 if running.
  std::int64_t cached_blocks = 0;
  /// Waiting: blocks of the matching prefix that are swapped: each takes an available block when its
  /// admission brings it back (PrefixCache::Probe::swapped). 0 if running.
  std::int64_t swapped_blocks = 0;
  /// Pinned blocks that its table holds or will match.
  std::int64_t pinned_blocks = 0;
  /// Running: whether it may go on now. One that may not keeps its place and its blocks, unless others need
  /// these. Always true if waiting.
  bool ready = true;
};

struct Budgets {
  std::int64_t step_tokens = 0;       ///< tokens in one step, ≥ max_batch
  std::int64_t prefill_chunk = 0;     ///< tokens of one sequence in one step, ≥ 1
  std::int64_t max_batch = 0;         ///< sequences running, ≥ 1
  std::int64_t total_blocks = 0;      ///< of the pool
  std::int64_t pinned_blocks = 0;     ///< CacheStats::pinned_blocks
  std::int64_t available_blocks = 0;  ///< PrefixCache::available_blocks(): free or evictable
};

/// `tokens` more tokens of sequence `id` are computed in this step.
struct Run {
  core::SequenceId id;
  std::int64_t tokens;
  friend bool operator==(const Run&, const Run&) = default;
};

/// A sequence that cannot be finished with this pool, even alone in it.
struct Impossible {
  core::SequenceId id;
  std::int64_t blocks_needed;    ///< beyond the pinned ones that it shares
  std::int64_t blocks_possible;  ///< all that are not pinned
  std::string message() const;   ///< for the caller, with what to do
  friend bool operator==(const Impossible&, const Impossible&) = default;
};

/// Carry out in this order: fail `impossible`, release `preempt` (they wait again, with all their tokens to
/// compute), let every one of `admit` match its prefix, have what of it is swapped brought back, and only
/// then append the tokens of `run`: bringing back and appending may evict what a later admission counts on.
/// Where a swapped block turns out to be lost, less of the prefix is there and its tokens are computed with
/// the others; that never takes more blocks than were counted.
struct Decision {
  std::vector<core::SequenceId> admit;    ///< waiting → running, each also in run
  std::vector<Run> run;                   ///< the step's batch, decodes first
  std::vector<core::SequenceId> preempt;  ///< running → waiting, youngest first
  std::vector<Impossible> impossible;

  bool empty() const { return run.empty() && preempt.empty() && impossible.empty(); }
};

/// The rules, in order:
///  1. What cannot fit alone is impossible.
///  2. Every running sequence that is ready must be able to take one more token. While blocks do not suffice
///     for that, the youngest running sequence is preempted (its unpinned blocks; never anchors'), but never
///     the oldest.
///  3. Decodes run, one token each. What is not ready does not run.
///  4. What is left of step_tokens goes to prefill chunks, one a sequence: the tenant with the smallest
///     FairShare counter first, oldest sequence first within a tenant (running before waiting). The block
///     that rule 2 keeps for every other running sequence stays its own.
///  5. A waiting sequence is admitted when its turn comes and its whole prompt fits beside what running
///     prefills still need, with one spare block for each running sequence; if it does not fit, nobody
///     overtakes it: admission stops for this step. Nobody is admitted unless every running sequence goes on.
///
/// Guaranteed for every input (CHECKs in decide, seeded simulations in the tests), given that all blocks
/// neither available nor pinned are held by `running`:
///  - budgets: Σ run.tokens ≤ step_tokens, chunk ≤ prefill_chunk, running + admitted ≤ max_batch;
///  - blocks: what run and admit take is ≤ available_blocks; nothing counts on blocks that a preemption in
///    the same decision frees, beyond reclaimable_blocks;
///  - progress: the decision is empty only if there is nothing to do or what runs is not ready; the oldest
///    running sequence is never preempted, so some sequence always comes nearer to its end;
///  - no starvation: a waiting sequence is overtaken only by tenants with a smaller counter, which grows.
Decision decide(std::span<const SequenceView> waiting, std::span<const SequenceView> running,
                const Budgets& budgets, const FairShare& shares);

}  // namespace fieldprint::scheduler
