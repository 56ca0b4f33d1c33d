#include <algorithm>
#include <chrono>
#include <deque>
#include <set>

#include "engine/engine.h"

/// Pages are checked, not trusted: resident blocks are hashed again, and what was computed from a damaged one
/// is computed again. The rule is in engine.h.
namespace fieldprint::engine {
namespace {

/// A finished answer whose pages nobody waits for has them checked after this at the latest, about as long as
/// its verdict may wait then.
constexpr std::chrono::milliseconds kMostUnchecked{250};

bool is_answer(const Sequence& sequence, std::int32_t commit) {
  return sequence.finished && commit == sequence.trail.sealed - 1;
}

/// Leading blocks of the table that the commit holds. The answer's last one, partly filled, was hashed when
/// the answer was sealed and cannot be hashed again.
std::int64_t blocks_of(const Sequence& sequence, std::int32_t commit) {
  return sequence.blocks_in(commit + 1) - (is_answer(sequence, commit) ? 1 : 0);
}

/// When the last commit was sealed, of a sequence with commits that are not checked.
std::uint64_t last_moment(const Sequence& sequence) {
  const Trail& trail = sequence.trail;
  return trail.marks[static_cast<std::size_t>(trail.next - 1 - trail.checked)].moment;
}

}  // namespace

/// Pages of those that somebody waits for: a held text, an effect, or the sequence itself, which has run as
/// far ahead as it may. And of one answer, so that a step stays short: that which was finished first, when
/// that is long ago.
void Engine::check_awaited_pages() {
  std::vector<core::SequenceId> awaited;
  const Sequence* oldest = nullptr;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->trail.marks.empty() || sequence->dropped) continue;
    if (sequence->request.hold_text || sequence->trail.effects > 0 || !commits_.may_run(id)) {
      awaited.push_back(id);
    } else if (sequence->finished && !sequence->active()) {
      if (oldest == nullptr || *sequence->ended < *oldest->ended) oldest = sequence.get();
    }
  }
  if (oldest != nullptr && Clock::now() - *oldest->ended >= kMostUnchecked) awaited.push_back(oldest->id);
  begin_checks(awaited);
  heed_checks(false);
}

/// Of pages that are not being checked already. What comes of it is heard in this step or a later one.
void Engine::begin_checks(const std::vector<core::SequenceId>& awaited) {
  std::set<kv::BlockId> unchecked;
  for (const core::SequenceId id : awaited) {
    const Sequence& sequence = *sequences_.at(id);
    for (const kv::BlockId block : held_blocks(sequence)) {
      if (cache_.good_or_checked_at(block) <= last_moment(sequence)) unchecked.insert(block);
    }
  }
  if (!unchecked.empty()) cache_.begin_check(std::vector(unchecked.begin(), unchecked.end()));
}

bool Engine::heed_checks(bool wait) {
  const std::vector<kv::PrefixCache::Check> checks = cache_.finish_checks(wait);
  bool good = true;
  for (const kv::PrefixCache::Check& check : checks) {
    scrubber_.note(check);
    for (const kv::BlockId block : check.damaged) lose(block);
    good = good && check.damaged.empty();
  }
  if (!checks.empty()) {
    for (const auto& [id, sequence] : sequences_) note_checked(*sequence);
  }
  return good;
}

bool Engine::check_pages(Sequence& sequence) {
  std::vector<kv::BlockId> unchecked;
  for (const kv::BlockId block : held_blocks(sequence)) {
    if (cache_.good_at(block) <= last_moment(sequence)) unchecked.push_back(block);
  }
  const std::vector<kv::BlockId> damaged = cache_.find_damaged(unchecked);
  for (const kv::BlockId block : damaged) lose(block);
  if (!damaged.empty()) return false;
  note_checked(sequence);
  return true;
}

/// The blocks of commits that are not checked, and of those before them; none if all are checked.
std::span<const kv::BlockId> Engine::held_blocks(const Sequence& sequence) {
  const Trail& trail = sequence.trail;
  if (trail.checked == trail.next) return {};
  const std::int64_t held = std::min(blocks_of(sequence, trail.next - 1), sequence.table.sealed_blocks());
  return sequence.table.blocks().first(static_cast<std::size_t>(held));
}

/// Says of the commits whose blocks were all hashed after they were sealed that they were.
void Engine::note_checked(Sequence& sequence) {
  Trail& trail = sequence.trail;
  const std::int32_t before = trail.checked;
  const std::span<const kv::BlockId> table = sequence.table.blocks();
  while (trail.checked < trail.next) {
    const std::int64_t blocks = blocks_of(sequence, trail.checked);
    if (sequence.table.sealed_blocks() < blocks) break;
    const std::uint64_t sealed = trail.marks.front().moment;
    const auto good = [&](kv::BlockId block) { return cache_.good_at(block) > sealed; };
    if (!std::ranges::all_of(table.first(static_cast<std::size_t>(blocks)), good)) break;
    trail.marks.pop_front();
    ++trail.checked;
  }
  if (trail.checked == before) return;
  trail.mass.erase(trail.mass.begin(), trail.mass.lower_bound(sequence.outputs_in(trail.checked)));
  commits_.pages_checked(sequence.id, trail.checked, blocks_of(sequence, trail.checked - 1));
}

/// Drops a damaged block and all that was computed after it, and has the sequences that hold it compute their
/// tokens again.
void Engine::lose(kv::BlockId damaged) {
  std::deque<kv::BlockId> lost = {damaged};
  for (; !lost.empty(); lost.pop_front()) {
    // Its last holder may have given it up by now.
    if (!cache_.sealed(lost.front())) continue;
    ++stats_.damaged_blocks;
    std::vector<Sequence*> holders;
    for (const auto& [id, sequence] : sequences_) {
      const std::span<const kv::BlockId> table = sequence->table.blocks();
      if (std::ranges::find(table, lost.front()) != table.end()) holders.push_back(sequence.get());
    }
    (void)cache_.discard(lost.front());
    for (Sequence* sequence : holders) {
      for (const kv::BlockId other : rewind(*sequence, lost.front())) {
        if (std::ranges::find(lost, other) == lost.end()) lost.push_back(other);
      }
    }
  }
}

/// Takes a sequence with damaged blocks back to what cannot depend on the damage; returns these blocks. All
/// blocks are hashed for that, so that commits which are not suspect are checked. A lost block that has its
/// digest was altered, if at all, before it was hashed: every commit that holds it is suspect.
std::vector<kv::BlockId> Engine::rewind(Sequence& sequence, kv::BlockId lost) {
  Trail& trail = sequence.trail;
  const std::span<const kv::BlockId> sealed =
      sequence.table.blocks().first(static_cast<std::size_t>(sequence.table.sealed_blocks()));
  std::vector<kv::BlockId> damaged = cache_.find_damaged(sealed);
  const bool has_digest = std::ranges::find(damaged, lost) == damaged.end();
  if (has_digest) damaged.push_back(lost);
  std::int32_t suspect = trail.next;
  for (const kv::BlockId block : damaged) {
    const std::int64_t i = std::ranges::find(sealed, block) - sealed.begin();
    for (std::int32_t commit = trail.checked; commit < suspect; ++commit) {
      const Mark& mark = trail.marks[static_cast<std::size_t>(commit - trail.checked)];
      const bool since = (has_digest && block == lost) || mark.moment >= cache_.good_at(block);
      if (blocks_of(sequence, commit) > i && since) suspect = commit;
    }
  }
  if (suspect > trail.checked) {
    trail.marks.erase(trail.marks.begin(), trail.marks.begin() + (suspect - trail.checked));
    trail.checked = suspect;
    commits_.pages_checked(sequence.id, suspect, blocks_of(sequence, suspect - 1));
  }
  sequence.table.release();
  sequence.running = false;
  sequence.row = -1;
  if (sequence.finished && suspect == trail.sealed) return damaged;

  trail.next = suspect;
  sequence.finite = true;
  const std::int64_t outputs = sequence.outputs_in(suspect);
  const std::int64_t good = sequence.prompt_tokens() + outputs;
  if (good < static_cast<std::int64_t>(sequence.tokens.size())) {
    sequence.confirmed = good;
    if (sequence.request.layout.anchor_tokens > 0) {
      const auto kept = trail.mass.find(outputs);
      CHECK(outputs == 0 || kept != trail.mass.end(), "no anchor mass was kept at token {}", outputs);
      sequence.mass_sum = outputs == 0 ? std::vector<double>() : kept->second;
      // That sum stays: more damage may take the sequence back to the same token before it counts it again.
      trail.mass.erase(trail.mass.upper_bound(outputs), trail.mass.end());
    }
    if (sequence.seen) {
      sequence.seen.emplace(file_.spec().vocab).add(sequence.known());
    }
  }
  await_admission(sequence);
  return damaged;
}

/// A suspect token is right if the model chooses it again. So are its logprobs, if the caller has them;
/// before that, those of the choice that counts take their place.
void Engine::confirm_token(Sequence& sequence, const sampler::Pick& pick, std::int32_t logit_row) {
  const std::int64_t position = *sequence.confirmed;
  core::OutputToken again = output_token(pick);
  core::OutputToken& stated =
      sequence.answer.output[static_cast<std::size_t>(position - sequence.prompt_tokens())];
  const bool given_out = sequence.finished && !sequence.request.hold_text;
  if (again.token != stated.token || (given_out && again != stated)) {
    // The blocks before it come first: they are complete, and may not be compared yet.
    seal_commits(sequence);
    if (sequence.dropped) return;
    return diverge(sequence, sequence.commit_of(position),
                   again.token != stated.token ? "a token is not the model's choice"
                                               : "its logprobs are other than were given out");
  }
  count_token(sequence, pick.token, logit_row);
  stated = std::move(again);
  if (position + 1 < static_cast<std::int64_t>(sequence.tokens.size())) {
    sequence.confirmed = position + 1;
    return;
  }
  sequence.confirmed.reset();
  if (sequence.finished) confirm_answer(sequence);
}

/// All tokens of a finished answer are right; so must be the rest that it states.
void Engine::confirm_answer(Sequence& sequence) {
  seal_commits(sequence);
  Trail& trail = sequence.trail;
  if (sequence.dropped) return;
  if (sequence.block_records() != sequence.answer.blocks ||
      sequence.mean_mass() != sequence.answer.anchor_mass) {
    return diverge(sequence, trail.sealed - 1, "its KV or its anchors' mass is other than it stated");
  }
  CHECK(trail.next == trail.sealed - 1, "{} of {} commits were compared", trail.next, trail.sealed);
  trail.marks.back().moment = cache_.moment();
  trail.next = trail.sealed;
}

/// What was computed again is not what the commit, or the tokens after the last commit, say.
void Engine::diverge(Sequence& sequence, std::int32_t commit, const std::string& what) {
  const std::string reason = "a damaged page was found, and computed again " + what;
  if (commit < sequence.trail.sealed) commits_.refute(sequence.id, commit, reason);
  fail(sequence.id, refuted(fmt::format("{}; the first {} of its {} tokens hold", reason,
                                        sequence.outputs_in(commit), sequence.answer.output.size())));
}

/// Whether blocks that finished answers hold would let more sequences run.
bool Engine::crowded(const scheduler::Decision& decision) const {
  if (!decision.preempt.empty()) return true;
  std::int64_t running = static_cast<std::int64_t>(decision.admit.size());
  bool waiting = false;
  for (const auto& [id, sequence] : sequences_) {
    if (!sequence->active()) continue;
    running += sequence->running ? 1 : 0;
    const bool admitted = sequence->running || std::ranges::find(decision.admit, id) != decision.admit.end();
    waiting = waiting || !admitted;
  }
  return (waiting && running < options_.max_batch) || (decision.run.empty() && running > 0);
}

/// Has a finished answer give its blocks up: the oldest whose pages are checked, or else the oldest one, for
/// which this waits. False if none holds any.
bool Engine::release_finished() {
  Sequence* leaving = nullptr;
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->active() || sequence->dropped || sequence->table.blocks().empty()) continue;
    const bool checked = held_blocks(*sequence).empty();
    if (leaving == nullptr || checked) leaving = sequence.get();
    if (checked) break;
  }
  if (leaving == nullptr) return false;
  if (!check_pages(*leaving)) return true;
  leaving->table.release();
  leaving->running = false;
  return true;
}

/// Whether the blocks that these sequences are about to give up are good, all of them: tokens after the last
/// commit depend on them too. Waits, as the blocks are needed in this step.
bool Engine::pages_hold(const std::vector<core::SequenceId>& leaving) {
  std::set<kv::BlockId> blocks;
  for (const core::SequenceId id : leaving) {
    const kv::BlockTable& table = sequences_.at(id)->table;
    const auto sealed = table.blocks().first(static_cast<std::size_t>(table.sealed_blocks()));
    blocks.insert(sealed.begin(), sealed.end());
  }
  const std::vector<kv::BlockId> damaged = cache_.find_damaged(std::vector(blocks.begin(), blocks.end()));
  for (const kv::BlockId block : damaged) lose(block);
  if (!damaged.empty()) return false;
  for (const core::SequenceId id : leaving) note_checked(*sequences_.at(id));
  return true;
}

}  // namespace fieldprint::engine
