#include <algorithm>

#include "engine/engine.h"

/// What a step has to do with commits: it hears what validation has found, and seals what it has computed.
namespace fieldprint::engine {

void Engine::heed_news() {
  News news = commits_.news();
  const bool turned = news.outage.has_value() != outage_.has_value();
  outage_ = std::move(news.outage);
  if (turned && events_.outage) events_.outage(outage_);
  for (CommitNews& each : news.commits) heed(each);
  for (const EffectNews& each : news.effects) {
    const auto found = effects_.find(each.effect);
    CHECK(found != effects_.end(), "nobody asked for effect {}", each.effect);
    const Effect effect = std::move(found->second);
    effects_.erase(found);
    if (const auto asked = sequences_.find(effect.id); asked != sequences_.end()) {
      --asked->second->trail.effects;
    }
    effect.outcome(each.outcome);
  }
}

void Engine::heed(CommitNews& news) {
  const auto found = sequences_.find(news.id);
  if (found == sequences_.end() || found->second->dropped) return;
  Sequence& sequence = *found->second;
  Trail& trail = sequence.trail;
  trail.validated = news.validated;
  trail.verdicts = news.verdicts;
  trail.reexecuted = news.reexecuted;
  while (!sequence.held.empty() && sequence.held.front().commit < trail.validated) {
    const HeldText text = std::move(sequence.held.front());
    sequence.held.pop_front();
    if (events_.text && !sequence.dropped) events_.text(sequence.id, text.text);
  }
  // A receipt holds the answer's tokens, and so waits where their text does.
  if (news.receipt && sequence.request.hold_text) {
    sequence.receipt = std::move(news.receipt);
  } else if (news.receipt && events_.recorded && !sequence.dropped) {
    events_.recorded(sequence.id, *news.receipt);
  }
  if (news.stopped) {
    fail(sequence.id, {news.stopped->kind,
                       fmt::format("{}; the first {} of its {} tokens hold", news.stopped->message,
                                   sequence.outputs_in(trail.validated), sequence.answer.output.size())});
  } else if (sequence.finished && trail.validated == trail.sealed) {
    complete(sequence);
  }
}

/// Every commit of the answer is validated, or none is recorded.
void Engine::complete(Sequence& sequence) {
  if (sequence.dropped) return;
  const core::SequenceId id = sequence.id;
  ended_.push_back(id);
  if (sequence.receipt && events_.recorded) events_.recorded(id, *sequence.receipt);
  if (sequence.dropped) return;
  if (sequence.request.hold_text && events_.finished) events_.finished(id, sequence.answer);
  if (!commits_.records() || sequence.dropped || !events_.validated) return;
  const Trail& trail = sequence.trail;
  events_.validated(id, {trail.sealed, trail.verdicts, trail.reexecuted});
}

void Engine::seal_commits() {
  for (const auto& [id, sequence] : sequences_) seal_commits(*sequence);
}

/// Seals the prompt and the blocks that are full and hashed. Of those that were sealed before the blocks were
/// lost, looks whether they are the same again.
void Engine::seal_commits(Sequence& sequence) {
  if (!commits_.records() || !sequence.first_token) return;
  Trail& trail = sequence.trail;
  while (!sequence.dropped && sequence.table.sealed_blocks() >= sequence.blocks_in(trail.next + 1)) {
    const std::int64_t blocks = sequence.blocks_in(trail.next + 1);
    std::vector<core::BlockRecord> records;
    Sha256 hash;
    for (std::int64_t i = sequence.blocks_in(trail.next); i < blocks; ++i) {
      const Digest& digest = cache_.digest(sequence.table.blocks()[static_cast<std::size_t>(i)]);
      records.push_back(sequence.block_record(i, digest));
      hash.update(digest);
    }
    const Mark mark{cache_.moment(), hash.finish()};
    if (trail.next < trail.sealed) {
      Mark& before = trail.marks[static_cast<std::size_t>(trail.next - trail.checked)];
      if (before.digest != mark.digest)
        return diverge(sequence, trail.next, "its KV is other than it stated");
      before = mark;
      ++trail.next;
      continue;
    }
    if (trail.next == 0) {
      commits_.seal_prompt(sequence.id, std::move(records));
    } else {
      const std::int64_t first = sequence.outputs_in(trail.next);
      const std::int64_t end = sequence.outputs_in(trail.next + 1);
      commits_.seal_segment(
          sequence.id,
          std::span(sequence.answer.output)
              .subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(end - first)),
          records.front());
    }
    trail.marks.push_back(mark);
    ++trail.next;
    ++trail.sealed;
  }
}

/// The last commit; what was not sealed before it is so first.
void Engine::seal_answer(Sequence& sequence) {
  sequence.finished = true;
  sequence.ended = Clock::now();
  if (!commits_.records()) return complete(sequence);
  seal_commits(sequence);
  commits_.seal_answer(sequence.id, sequence.answer);
  Trail& trail = sequence.trail;
  trail.marks.push_back({cache_.moment(), {}});
  ++trail.next;
  ++trail.sealed;
}

/// There is nothing to compute until validation has come further.
void Engine::await_news() {
  seal_commits();
  std::vector<core::SequenceId> all;
  for (const auto& [id, sequence] : sequences_) all.push_back(id);
  begin_checks(all);
  if (heed_checks(true)) commits_.wait();
}

}  // namespace fieldprint::engine
